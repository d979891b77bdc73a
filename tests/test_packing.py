"""Packed rows against padded ones, over many random lengths, families and ways to attend; batches over processes and parts."""

import copy

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from torch.nn.attention.flex_attention import create_block_mask
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast, masking_utils
from transformers.masking_utils import AttentionMaskInterface, create_causal_mask, flash_attention_mask
from transformers.modeling_utils import AttentionInterface

from artgpt4.batches import BLOCK, LAYOUTS, Batches, Pairs, collate
from artgpt4.model import ArtGPT4ForConditionalGeneration, VisualTokens, VisualTokensConfig, keep_apart
from artgpt4.packing import fill_rows, pack, pad, share
from artgpt4.processor import ArtGPT4Processor
from artgpt4.profile import InputError

transformers.logging.set_verbosity_error()

QUERIES, WIDTH, PLACE, END = 4, 48, 96, 2
SMALL = dict(hidden_size=WIDTH, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4)
EYES = VisualTokens(VisualTokensConfig(dict(image_size=64, patch_size=16, initializer_range=0.02, **SMALL), SMALL, QUERIES))
FAMILIES = """llama mistral qwen2 qwen3 gemma phi3 olmo smollm3 stablelm starcoder2 granite glm helium seed_oss mixtral
qwen3_moe""".split()


def around(family="llama", scheme="artgpt4", **changes):
    "ArtGPT-4 around a tiny language model with random weights."
    sizes = dict(vocab_size=PLACE, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
                 num_key_value_heads=2, head_dim=16, bos_token_id=1, eos_token_id=END, pad_token_id=0, initializer_range=0.1)
    torch.manual_seed(0)
    language = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **sizes | changes))
    return ArtGPT4ForConditionalGeneration.from_parts(copy.deepcopy(EYES), language, scheme=scheme).eval()


def samples(targets, seed=0, prompt=0):
    "Ids and labels: an image, `prompt` words, so many target tokens and an end."
    rng = np.random.default_rng(seed)
    coded = []
    for n in targets:
        before = [1, *[PLACE] * QUERIES, *rng.integers(5, 90, prompt).tolist()]
        asked = [*rng.integers(5, 90, n).tolist(), END]
        coded.append((before + asked, [-100] * len(before) + asked))
    return coded


def tokens(coded):
    return [len(ids) for ids, _ in coded]


def run(model, coded, rows=None, **options):
    "Each sample's mean loss, the loss of all, the gradients; packed in `rows`, or padded."
    batch = pad(coded, END) if rows is None else pack(coded, rows, END)
    rows = [[i] for i in range(len(coded))] if rows is None else rows
    features = torch.randn(len(coded), QUERIES, WIDTH, generator=torch.Generator().manual_seed(1))
    model.zero_grad()
    out = model(**batch, qformer_features=features[[i for row in rows for i in row]], **options)
    out.loss.backward()
    losses = {}
    for r, row in enumerate(rows):
        start = 0
        for i in row:
            ids, labels = coded[i]
            logits = out.logits[r, start : start + len(ids) - 1].detach().float()
            losses[i] = cross_entropy(logits, torch.tensor(labels[1:])).item()
            start += len(ids)
    return losses, out.loss.item(), {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}


def assert_agree(a, b, tolerance=1e-5):
    assert max(abs(a[0][i] - b[0][i]) for i in a[0]) < tolerance
    assert abs(a[1] - b[1]) < tolerance
    assert all((g - b[2][n]).abs().max() < tolerance for n, g in a[2].items())


def random_lengths(rng):
    "Of a few samples: all kinds of shapes, one-token targets among them."
    n = int(rng.integers(1, 24))
    shapes = [rng.integers(1, 40, n), np.full(n, 7), 1 + rng.geometric(0.2, n), np.where(rng.random(n) < 0.2, 60, 1)]
    return shapes[rng.integers(4)]


def test_every_sample_has_a_place_and_few_places_are_empty():
    for seed in range(300):
        lengths = (5 + random_lengths(np.random.default_rng(seed))).tolist()
        empty = []
        for hidden_size in (16, 128, 5120):
            rows = fill_rows(lengths, hidden_size)
            widths = [sum(lengths[i] for i in row) for row in rows]
            assert sorted(i for row in rows for i in row) == list(range(len(lengths))) and all(rows)
            empty.append(1 - sum(lengths) / (len(rows) * max(widths)))
        assert empty[2] <= min(empty[:2]) + 1e-9 and empty[2] < 0.05
        parts = share(lengths, min(3, len(lengths)))
        loads = [sum(lengths[i] for i in part) for part in parts]
        assert min(loads) > 0 and max(loads) - min(loads) <= max(lengths)


@pytest.mark.parametrize("seed", range(12))
def test_packed_is_padded_for_random_lengths(seed):
    rng = np.random.default_rng(seed)
    coded = samples(random_lengths(rng).tolist(), seed, prompt=int(rng.integers(0, 9)))
    model = around("mistral", sliding_window=6) if seed % 3 == 0 else around()
    assert_agree(run(model, coded), run(model, coded, fill_rows(tokens(coded), 64)))
    by_chance = np.array_split(rng.permutation(len(coded)), min(3, len(coded)))
    assert_agree(run(model, coded), run(model, coded, [row.tolist() for row in by_chance]))


def test_a_sample_as_long_as_the_row_and_a_target_of_one_token():
    coded = samples([34, 14, 14, 0])  # 40, 20, 20 and 6 tokens; the last is asked for its end alone
    for rows in ([[0], [1, 2]], [[0], [1, 2], [3]], [[0, 1, 2, 3]]):
        chosen = [coded[i] for i in range(sum(map(len, rows)))]
        assert_agree(run(around(), chosen), run(around(), chosen, rows))
    assert pack(coded[:3], [[0], [1, 2]], END)["position_ids"].tolist() == [[*range(40)], [*range(20), *range(20)]]


@pytest.mark.parametrize("family", FAMILIES)
def test_families(family):
    coded = samples([1, 30, 3, 12, 7, 2, 25])
    model = around(family)
    for how in ("sdpa", "eager"):
        model.language_model.set_attn_implementation(how)
        assert_agree(run(model, coded), run(model, coded, [[1, 0], [4, 2, 5], [6, 3]]))


def test_gradient_checkpointing():
    coded = samples([9, 1, 4])
    model = around().train()
    before = run(model, coded, [[0, 1, 2]])
    model.gradient_checkpointing_enable()
    assert_agree(before, run(model, coded, [[0, 1, 2]]))


def test_outputs_where_there_are_labels_only():
    "The head runs on the asked tokens alone, with the same loss and gradients."
    coded, rows = samples([9, 1, 4, 20]), [[3], [0, 1, 2]]
    model, seen = around(), []
    model.language_model.lm_head.register_forward_hook(lambda m, args, out: seen.append(tuple(out.shape)))
    batch = dict(pack(coded, rows, END), qformer_features=torch.randn(4, QUERIES, WIDTH))
    whole, asked = model(**batch), model(**batch, skip_logits=True)
    assert seen[1] == (sum(label != -100 for _, labels in coded for label in labels), PLACE)
    assert asked.logits is None and abs(whole.loss - asked.loss) < 1e-6


def test_a_first_token_is_asked_of_nobody():
    "With labels on everything, as for a plain language model, the sample before is not asked for the next one's first token."
    coded = [(ids, [label if label != PLACE else -100 for label in ids]) for ids, _ in samples([5, 9, 2])]
    padded, packed = run(around(), coded), run(around(), coded, [[0, 1, 2]])
    assert abs(padded[1] - packed[1]) < 1e-5


def by_boundaries(module, query, key, value, attention_mask, scaling, cu_seq_lens_q=None, max_length_q=None, **kwargs):
    "What flash attention does with boundaries: (batch, heads, tokens, size) as one row, each span by itself."
    groups = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(groups, 1) for x in (key, value))
    flat = [x.transpose(1, 2).flatten(0, 1) for x in (query, key, value)]  # (all tokens, heads, size)
    spans = list(zip(cu_seq_lens_q[:-1].tolist(), cu_seq_lens_q[1:].tolist()))
    assert attention_mask is None and max_length_q == max(b - a for a, b in spans)
    attend = torch.nn.functional.scaled_dot_product_attention
    out = [attend(*(x[a:b].transpose(0, 1) for x in flat), is_causal=True, scale=scaling).transpose(0, 1) for a, b in spans]
    return torch.cat(out).view(query.shape[0], query.shape[2], *query.shape[1::2]), None


def test_flash_attention_is_told_the_boundaries():
    AttentionInterface.register("flash_by_hand", by_boundaries)
    AttentionMaskInterface.register("flash_by_hand", flash_attention_mask)
    coded = samples([9, 1, 4, 20, 3])
    model = around()
    padded = run(model, coded)
    model.language_model.config._attn_implementation = "flash_by_hand"
    assert_agree(padded, run(model, coded, [[3], [0, 1, 2, 4]]))


def test_flex_attention_gets_a_block_diagonal_mask(monkeypatch):
    uncompiled = lambda *args, _compile, **kwargs: create_block_mask(*args, **kwargs)  # noqa: E731
    monkeypatch.setattr(masking_utils, "create_block_mask", uncompiled)
    config = around().language_model.config
    config._attn_implementation = "flex_attention"
    places = pack(samples([9, 1, 4, 20, 3]), [[3], [0, 1, 2, 4]], END)["position_ids"]
    rows, width = places.shape
    mask = create_causal_mask(config, torch.zeros(rows, width, 1), None, None, places)
    index = [torch.arange(n) for n in (rows, 1, width, width)]
    b, h, q, k = torch.meshgrid(*index, indexing="ij")
    sample = (places == 0).cumsum(1)
    assert torch.equal(mask.mask_mod(b, h, q, k)[:, 0], (sample[:, :, None] == sample[:, None]) & (q >= k)[:, 0])


def test_what_cannot_keep_samples_apart_is_refused():
    places = torch.tensor([[0, 1, 0, 1]])
    model = around().language_model
    with pytest.raises(InputError, match="leave use_cache alone"):
        keep_apart(model, places, use_cache=True)
    with pytest.raises(InputError, match="prefix: it stands before a row"):
        keep_apart(around(scheme="prefix").language_model, places)
    model.config._attn_implementation = "homemade"
    with pytest.raises(InputError, match="attention 'homemade': not known to keep packed samples apart"):
        keep_apart(model, places)


def test_the_mean_is_the_sum_over_the_number_to_the_bit():
    coded = samples([9, 1, 4, 20, 3])
    number = torch.tensor(sum(label != -100 for _, labels in coded for label in labels))
    mean, over = run(around(), coded), run(around(), coded, num_items_in_batch=number)
    assert mean[1] == over[1] and all(torch.equal(g, over[2][n]) for n, g in mean[2].items())


class Drawn:
    "Features of pictures nobody has painted, in five views each."

    crops = 4
    values = torch.randn(64, 1 + crops, QUERIES, WIDTH, generator=torch.Generator().manual_seed(2))

    def take(self, rows, views=None):
        return {"qformer_features": self.values[torch.tensor(rows), torch.tensor(views) if views is not None else 0]}


def processor():
    "Letters are tokens."
    symbols = ["<pad>", "<s>", "</s>", "<unk>", *map(chr, range(32, 122)), "\n"]
    letters = Tokenizer(models.WordLevel({c: i for i, c in enumerate(symbols)}, unk_token="<unk>"))
    letters.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=letters, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    return ArtGPT4Processor(tokenizer, image_size=64, num_query_tokens=QUERIES, image_token_id=PLACE)


def pairs(seed=0):
    rng = np.random.default_rng(seed)
    texts = ["".join(chr(c) for c in rng.integers(97, 120, n)) for n in np.minimum(rng.geometric(0.06, 64), 90)]
    return Pairs(Drawn(), np.arange(64), texts)


def learn(model, parts):
    "The parts' losses and the sum of their gradients."
    model.zero_grad()
    losses = []
    for part in parts:
        loss = model(**part, skip_logits=True).loss
        loss.backward()
        losses.append(loss.item())
    return sum(losses), {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("batching", LAYOUTS)
@pytest.mark.parametrize("stage", (1, 2))
def test_parts_and_processes_learn_what_the_whole_would(batching, stage):
    model = around()

    def parts(**how):
        return Batches(pairs(), processor(), stage, 11, 60, seed=3, batching=batching, **how)(7)

    loss, gradients = learn(model, parts())
    for processes, accumulate in ((1, 2), (2, 1), (2, 3), (3, 3), (11, 1)):
        shared = [part for p in range(processes) for part in parts(accumulate=accumulate, process=p, processes=processes)]
        assert len(shared) == processes * accumulate
        found, summed = learn(model, shared)
        assert abs(found - loss) < 1e-5 and all((g - summed[n]).abs().max() < 1e-5 for n, g in gradients.items())


def test_padded_and_packed_learn_the_same_at_every_step():
    model = around()
    for step in range(4):
        one, other = (learn(model, Batches(pairs(), processor(), 2, 9, 60, 3, how)(step)) for how in ("padded", "packed"))
        assert abs(one[0] - other[0]) < 1e-5
        assert all((g - other[1][n]).abs().max() < 1e-5 for n, g in one[1].items())


def test_a_block_is_the_same_pairs_and_crops_in_every_layout():
    def taken(batching):
        batches = Batches(pairs(), processor(), 1, 5, 60, 3, batching)
        shown = torch.cat([part["qformer_features"][:, 0, 0] for step in range(BLOCK) for part in batches(step)])
        return shown.sort().values

    for batching in LAYOUTS[1:]:
        assert torch.equal(taken(batching), taken("padded"))


def test_bucketed_losses_are_those_of_each_pair_alone():
    model, batches = around(), Batches(pairs(), processor(), 1, 5, 60, 3, "bucketed")
    for step in (0, 3, BLOCK + 1):
        draw, [part] = batches.draws.draw(step), batches(step)
        logits = model(**{k: v for k, v in part.items() if k not in ("labels", "num_items_in_batch")}).logits
        for i, (pair, view) in enumerate(zip(draw.chosen, draw.views)):
            alone = collate(pairs(), [pair], processor(), 1, 60)
            alone["qformer_features"] = Drawn.values[pair, view][None]
            found = cross_entropy(logits[i, :-1], part["labels"][i, 1:])
            assert abs(found - model(**alone).loss) < 1e-5


@pytest.mark.parametrize("batching", LAYOUTS)
def test_a_step_is_a_function_of_its_number(batching):
    def fresh():
        return Batches(pairs(), processor(), 2, 6, 60, 3, batching, accumulate=2)

    going = fresh()
    for step in (0, 1, 40, 2, BLOCK, BLOCK - 1):
        for one, other in zip(going(step), fresh()(step), strict=True):
            assert one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def test_a_cut_target_keeps_its_end():
    for end, ids in (("\n", 1), ("###", 3), ("", 0)):
        for limit in range(1, 12):
            _, labels = processor().encode_pair("", "a long caption", end, limit)
            asked = [label for label in labels if label != -100]
            whole = processor().tokenizer("a long caption" + end, add_special_tokens=False).input_ids
            assert len(asked) == limit
            assert asked[-min(ids, limit) :] == whole[-min(ids, limit) :] if ids else asked == whole[:limit]


def test_nothing_asked_is_one_clear_line():
    for batching in LAYOUTS:
        [part] = Batches(pairs(), processor(), 1, 4, 0, 3, batching)(0)
        with pytest.raises(InputError, match="labels: all are -100"):
            around()(**part)
