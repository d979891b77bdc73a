"""Agreement with tensors that the released code computed at tiny size, module by module.

The folder comes from the environment variable ARTGPT4_REFERENCE; without it the tests are skipped, and where CI is
set they fail instead. A few of the tensors are in nbs/fixtures, where the chapters on adapter and model use them.
"""

import copy
import json
import os
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from artgpt4.adapter import decoder_blocks, set_scheme
from artgpt4.model import ArtGPT4Config, ArtGPT4ForConditionalGeneration
from artgpt4.pixels import MEAN, STD, random_box, to_pixel_values
from artgpt4.prompts import clean_caption
from artgpt4.recipes import half_steps, moved, part_of
from artgpt4.release import BUFFERS, export_release, load_release, our_name, released_name

FOLDER = os.environ.get("ARTGPT4_REFERENCE")


@pytest.fixture(scope="session", autouse=True)
def reference_folder() -> Path:
    if not FOLDER:
        say = pytest.fail if os.environ.get("CI") else pytest.skip
        say("ARTGPT4_REFERENCE is not set: no tensors of the released code to compare with")
    if not Path(FOLDER).is_dir():
        pytest.fail(f"ARTGPT4_REFERENCE={FOLDER}: no such folder")
    return Path(FOLDER)


def read(name: str):
    path = Path(FOLDER) / name
    return load_file(path) if name.endswith(".safetensors") else json.loads(path.read_text())


def tiny_config() -> ArtGPT4Config:
    "The released sizes in the words of transformers."
    sizes = read("config.json")["config"]
    vision, qformer, llama = sizes["vision"], sizes["qformer"], sizes["llama"]
    assert (vision["norm_eps"], vision["ln_vision_eps"], vision["qkv_bias"]) == (1e-6, 1e-5, True)
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "layer_norm_eps")
    llama = {k: v for k, v in llama.items() if k not in ("adapter_hidden", "rope_theta")}
    return ArtGPT4Config(
        vision_config={
            "hidden_size": vision["embed_dim"], "intermediate_size": vision["mlp_hidden"],
            "num_hidden_layers": vision["depth"], "num_attention_heads": vision["num_heads"],
            "image_size": vision["img_size"], "patch_size": vision["patch_size"],
        },
        qformer_config={k: qformer[k] for k in names},
        text_config={"model_type": "llama", **llama},
        num_query_tokens=qformer["num_query_token"],
        adapter_reduction=llama["hidden_size"] // sizes["llama"]["adapter_hidden"],
    )


@pytest.fixture(scope="module")
def model() -> ArtGPT4ForConditionalGeneration:
    torch.manual_seed(0)
    model = ArtGPT4ForConditionalGeneration(tiny_config())
    load_release(model, str(Path(FOLDER) / "official_full_state_dict.safetensors"))
    return model.eval()


@pytest.fixture(scope="module")
def batch(model) -> dict:
    "The stage 1 batch as token ids: BOS, the image's places, caption and end; padded on the right."
    case, tensors = read("case_stage1.json"), read("case_stage1_activations.safetensors")
    text = torch.tensor(case["text_ids"])
    start = [case["bos"]] + [model.config.image_token_id] * model.config.num_query_tokens
    input_ids = torch.cat([torch.tensor([start] * len(text)), text], 1)
    return {
        "input_ids": input_ids, "pixel_values": tensors["images"],
        "attention_mask": tensors["attention_mask"], "labels": tensors["labels"],
    }


def close(ours, theirs, atol=5e-5):
    torch.testing.assert_close(ours.float(), theirs.float(), atol=atol, rtol=0)


def relative(ours, theirs) -> float:
    return ((ours - theirs).norm() / theirs.norm()).item()


def test_trainable_names(model):
    trained = set_scheme(model, "artgpt4")
    assert sorted(map(released_name, trained)) == sorted(read("config.json")["trainable"])
    assert trained == [n for n, p in model.named_parameters() if p.requires_grad]


def test_optimizer_sees_the_same_matrices_and_vectors(model):
    matrices, vectors = read("config.json")["optimizer_groups"]
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert released_name(name) in (matrices if parameter.ndim > 1 else vectors)["params"]


def test_attention_mask_and_labels_follow_from_the_ids(batch):
    case = read("case_stage1.json")
    text, mask = torch.tensor(case["text_ids"]), torch.tensor(case["text_attention_mask"])
    before = batch["labels"].shape[1] - text.shape[1]
    assert (batch["labels"][:, :before] == -100).all()
    assert torch.equal(batch["labels"][:, before:], text.masked_fill(mask == 0, -100))
    assert torch.equal(batch["attention_mask"][:, before:], mask)


def test_stage1_logits_and_loss(model, batch):
    theirs = read("case_stage1_activations.safetensors")
    with torch.no_grad():
        output, only_loss = model(**batch), model(**batch, skip_logits=True)
    close(output.logits[batch["attention_mask"].bool()], theirs["logits"][batch["attention_mask"].bool()])
    assert abs(output.loss.item() - theirs["loss"].item()) < 1e-5
    assert abs(output.loss.item() - read("case_stage1.json")["loss"]) < 1e-5
    assert abs(only_loss.loss.item() - theirs["loss"].item()) < 1e-5 and only_loss.logits is None


def test_frozen_features_give_the_same_logits(model, batch):
    features = model.get_qformer_features(batch["pixel_values"])
    close(features, read("case_stage1_activations.safetensors")["qformer_last_hidden_state"])
    with torch.no_grad():
        output = model(**{k: v for k, v in batch.items() if k != "pixel_values"}, qformer_features=features)
    assert abs(output.loss.item() - read("case_stage1.json")["loss"]) < 1e-5


def inner_modules(model) -> dict:
    "Released activation names and the modules whose outputs they are."
    vision, decoder = model.vision_model, model.language_model.model
    modules = {"vit_patch_embed": vision.embeddings.patch_embedding}
    modules |= {"ln_vision_out": vision.post_layernorm, "qformer_embeddings_out": model.qformer.layernorm}
    modules |= {"llama_proj_out": model.language_projection, "final_norm_out": decoder.norm}
    modules |= {f"vit_block_{i}": m for i, m in enumerate(vision.encoder.layers)}
    modules |= {f"qformer_layer_{i}": m for i, m in enumerate(model.qformer.encoder.layer)}
    for i, block in enumerate(decoder.layers):
        modules |= {f"decoder_layer_{i}": block, f"decoder_{i}_adapter_out": block.adapter}
        modules[f"decoder_{i}_attn_out"] = block.self_attn
    return modules


def keep_first(found: dict, name: str, module, inputs, output) -> None:
    "A forward hook; the first output counts, since transformers pools with a second call of the last LayerNorm."
    found.setdefault(name, output[0] if isinstance(output, tuple) else output)


def test_every_inner_activation(model, batch):
    theirs, found = read("case_stage1_activations.safetensors"), {}
    modules, handles = inner_modules(model), []
    for name, module in modules.items():
        handles.append(module.register_forward_hook(partial(keep_first, found, name)))
    with torch.no_grad():
        found["inputs_embeds"] = model.embed(batch["input_ids"], batch["pixel_values"])
        model(**batch)
    for handle in handles:
        handle.remove()
    found["vit_patch_embed"] = found["vit_patch_embed"].flatten(2).transpose(1, 2)
    found["vit_out"] = found[f"vit_block_{len(model.vision_model.encoder.layers) - 1}"]
    found["qformer_last_hidden_state"] = found[f"qformer_layer_{len(model.qformer.encoder.layer) - 1}"]
    mask = batch["attention_mask"].bool()
    for name, ours in found.items():
        real = mask if ours.shape[:2] == mask.shape else slice(None)
        close(ours[real], theirs[name][real])
    assert theirs.keys() - found.keys() == {"attention_mask", "images", "labels", "logits", "loss"}


def test_stage1_gradients(model, batch):
    theirs, norms = read("case_stage1_grads.safetensors"), read("case_stage1.json")["grad_norms"]
    model.train()
    model.zero_grad()
    model(**batch).loss.backward()
    ours = {released_name(n): p.grad for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    model.eval()
    assert ours.keys() == theirs.keys() == norms.keys()
    assert max(relative(ours[n], theirs[n]) for n in theirs) < 1e-4
    assert max(abs(ours[n].norm().item() / norms[n] - 1) for n in norms) < 1e-4


def half_model(model, norms: torch.dtype):
    "A copy with the language model in fp16, its trained norms in `norms`, the adapters not swapped yet."
    half = copy.deepcopy(model).train()
    set_scheme(half, "artgpt4")
    for name, parameter in half.language_model.named_parameters():
        if not parameter.requires_grad or part_of(name) == "norms":
            parameter.data = parameter.data.to(norms if parameter.requires_grad else torch.float16)
    return half


def test_mixed_precision_as_released(model, batch):
    "The same error with norms in fp16; with norms in fp32, the same counts of tensors that move."
    theirs = read("amp_quirks.json")
    for name, norms in (("as_released", torch.float16), ("norms_cast_to_fp32_scale16", torch.float32)):
        half, error = half_model(model, norms), None
        before = {n: p.detach().clone() for n, p in half.named_parameters()}
        groups = [[p for p in half.parameters() if p.requires_grad and (p.ndim > 1) == matrices] for matrices in (True, False)]
        optimizer = torch.optim.AdamW([dict(params=g, weight_decay=d) for g, d in zip(groups, (0.05, 0.0))], lr=1e-3)
        try:
            half_steps(half, batch, lambda m, b: m(**b).loss, optimizer, "released", scale=16.0)
        except ValueError as e:
            error = repr(e)
        assert error == theirs[name]["error"]
        stats = theirs[name]["stats"]
        found = moved(half, before)
        for part, their_part in (("adapters", "adapter"), ("norms", "norm"), ("projection", "proj")):
            assert found[part] == f"{stats[their_part]['changed']} of {stats[their_part]['n']}"


def run_block(model, hidden):
    "One decoder block of the language model on its own, causal, positions from 0."
    decoder = model.language_model.model
    positions = torch.arange(hidden.shape[1])[None]
    rotary = decoder.rotary_emb(hidden, position_ids=positions)
    causal = torch.full((hidden.shape[1],) * 2, torch.finfo(hidden.dtype).min, dtype=hidden.dtype).triu(1)
    return decoder.layers[1](hidden, attention_mask=causal[None, None], position_embeddings=rotary, position_ids=positions)


def micro_modules(model) -> dict:
    vision, decoder = model.vision_model, model.language_model.model
    return {
        "adapter0": decoder.layers[0].adapter, "decoder1": lambda x: run_block(model, x),
        "ln_vision.small": vision.post_layernorm, "qformer_layernorm.small": model.qformer.layernorm,
        "rmsnorm.small": decoder.layers[0].input_layernorm, "vit_block0": vision.encoder.layers[0],
        "vit_norm1.small": vision.encoder.layers[0].layer_norm1,
    }


def test_micro_modules(model):
    micro, modules = read("micro.safetensors"), micro_modules(model)
    assert {n.removesuffix(".in") for n in micro if n.endswith(".in")} == {*modules, "decoder1.fp16"}
    for name, module in modules.items():
        with torch.no_grad():
            close(module(micro[f"{name}.in"]), micro[f"{name}.out"], atol=1e-5)


def test_half_precision_block(model):
    micro = read("micro.safetensors")
    half = ArtGPT4ForConditionalGeneration(tiny_config())
    half.load_state_dict(model.state_dict())
    half.half()
    with torch.no_grad():
        whole = run_block(half, micro["decoder1.fp16.in"])
        for block in decoder_blocks(half.language_model):  # as we train it: fp32 adapters and norms, fp16 base
            block.adapter.float(), block.input_layernorm.float(), block.post_attention_layernorm.float()
        mixed = run_block(half, micro["decoder1.fp16.in"])
    assert whole.dtype == mixed.dtype == torch.float16
    assert relative(whole.float(), micro["decoder1.fp16.out"].float()) < 1e-3
    assert relative(mixed.float(), micro["decoder1.fp16.out"].float()) < 1e-3


def test_names_agree_with_the_key_map():
    bridge = {"lm.": "language_model.", "vision.": "vision_model.", "proj.": "language_projection."}
    for name, theirs in read("key_map.json")["map"].items():
        if theirs is None:
            assert BUFFERS.search(name) and our_name(name) is None
        elif "qkv.bias" not in theirs:
            prefix = next((p for p in bridge if theirs.startswith(p)), "")
            assert our_name(name) == bridge.get(prefix, "") + theirs.removeprefix(prefix)
            assert released_name(our_name(name)) == name


def test_release_round_trip(model):
    theirs, ours = read("official_full_state_dict.safetensors"), export_release(model)
    assert ours.keys() == {n for n in theirs if not BUFFERS.search(n)}
    assert all(torch.equal(ours[n], theirs[n]) for n in ours)


def test_trained_part_alone(model):
    path = Path(FOLDER) / "official_checkpoint_model.safetensors"
    fresh = ArtGPT4ForConditionalGeneration(tiny_config())
    load_release(fresh, export_release(model))
    torch.nn.init.zeros_(fresh.language_projection.weight)
    names = load_release(fresh, path)
    assert sorted(map(released_name, names)) == sorted(read("config.json")["trainable"])
    exported = export_release(fresh, trained_only=True)
    assert exported.keys() == {n for n in load_file(path) if not BUFFERS.search(n)}
    assert all(torch.equal(t, load_file(path)[n]) for n, t in exported.items())


def test_parameter_counts():
    for sizes in read("param_counts.json").values():
        if "hidden" in sizes:
            text = {"model_type": "llama", "hidden_size": sizes["hidden"], "num_hidden_layers": sizes["layers"]}
            text |= {"intermediate_size": {4096: 11008, 5120: 13824}[sizes["hidden"]], "vocab_size": 32000}
            with torch.device("meta"):
                model = ArtGPT4ForConditionalGeneration(ArtGPT4Config(text_config=text))
            trained = [p for p in model.parameters() if p.requires_grad]
            assert (len(trained), sum(p.numel() for p in trained)) == (sizes["trainable_tensors"], sizes["trainable_total"])
            assert sum(p.numel() for p in trained if p.ndim > 1) == sizes["weight_decayed"]


def test_preprocessing_is_exact():
    image, about = Image.open(Path(FOLDER) / "preproc_input.png"), read("preproc.json")
    theirs = read("preproc.safetensors")
    assert (list(MEAN), list(STD)) == (about["mean"], about["std"])
    for size in (56, 224):
        assert torch.equal(to_pixel_values(image, size), theirs[f"eval_{size}"])
    for sample in about["train_samples"]:
        box = random_box(*image.size, torch.Generator().manual_seed(sample["seed"]))
        top, left, height, width = sample["i_j_h_w"]
        assert box == (left, top, left + width, top + height)
        assert torch.equal(to_pixel_values(image, 56, box), theirs[f"train_56_seed{sample['seed']}"])


def test_captions_are_exact():
    for case in read("caption_processor.json"):
        assert clean_caption(case["raw"]) == case["processed"]
