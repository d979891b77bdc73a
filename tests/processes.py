"""Several processes train as one does: DDP, FSDP2 and ZeRO-3, on the CPU over gloo, from the same start to the same weights.

Each case forks two processes. FSDP2 asks for GPUs, so on the CPU Accelerate is told that it has them. ZeRO-3 is checked where
DeepSpeed is installed, which this repository does not ask for: `pip install deepspeed`; on a CPU it needs a C++ compiler, too.
"""

import functools
import json
import os

import pytest
import torch
from accelerate import debug_launcher
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType, is_deepspeed_available

from artgpt4.adapter import SCHEMES, set_scheme
from artgpt4.checkpoints import Checkpoint
from artgpt4.model import ArtGPT4Config, ArtGPT4ForConditionalGeneration
from artgpt4.processes import here
from artgpt4.profile import InputError
from artgpt4.release import load_trained, save_trained, whole
from artgpt4.trainer import fit

SIZES = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2)
TEXT = dict(SIZES, vocab_size=64, num_key_value_heads=2, initializer_range=0.3)
STEPS, QUERIES, SAMPLES = 3, 4, 8
FSDP2 = dict(
    ACCELERATE_USE_FSDP="true",
    FSDP_VERSION="2",
    FSDP_AUTO_WRAP_POLICY="TRANSFORMER_BASED_WRAP",
    FSDP_RESHARD_AFTER_FORWARD="true",
)
WITH_DEEPSPEED = pytest.mark.skipif(not is_deepspeed_available(), reason="DeepSpeed is not installed: ZeRO-3 was not checked")
WAYS = ["ddp", "fsdp2", pytest.param("zero3", marks=WITH_DEEPSPEED)]


def environment_of(way: str, folder) -> dict[str, str]:
    "What the launcher would say; DeepSpeed is also told to cut tensors of any size, ours being small."
    if way == "zero3":
        settings = folder / "zero3.json"
        settings.write_text(json.dumps(dict(zero_optimization=dict(stage=3, stage3_param_persistence_threshold=0))))
        return dict(ACCELERATE_USE_DEEPSPEED="true", ACCELERATE_USE_CPU="false", ACCELERATE_DEEPSPEED_ZERO3_INIT="false",
                    ACCELERATE_DEEPSPEED_CONFIG_FILE=str(settings))  # fmt: skip
    return FSDP2 if way == "fsdp2" else {}


def build(scheme: str = "artgpt4") -> ArtGPT4ForConditionalGeneration:
    torch.manual_seed(0)
    config = ArtGPT4Config(dict(SIZES, image_size=28, patch_size=14), dict(SIZES, vocab_size=2), TEXT, num_query_tokens=QUERIES)
    return set_scheme(model := ArtGPT4ForConditionalGeneration(config), scheme) and model


def samples(step: int) -> dict[str, torch.Tensor]:
    "A step's batch: texts of unequal length, so that the mean of the parts' means would be another number."
    draw = torch.Generator().manual_seed(100 + step)
    ids, labels = torch.full((SAMPLES, 16), 2), torch.full((SAMPLES, 16), -100)
    ids[:, :5] = torch.tensor([1] + [64] * QUERIES)
    for row in range(SAMPLES):
        length = int(torch.randint(2, 12, (1,), generator=draw))
        ids[row, 5 : 5 + length] = labels[row, 5 : 5 + length] = torch.randint(3, 64, (length,), generator=draw)
    features = torch.randn(SAMPLES, QUERIES, SIZES["hidden_size"], generator=draw)
    return dict(input_ids=ids, attention_mask=(ids != 2).long(), labels=labels, qformer_features=features)


def parts_at(step: int, accumulate: int = 1, spoil: int | None = None) -> list[dict]:
    "This process's parts of the batch; `spoil` is the step at which the last process has a NaN."
    batch, state = samples(step), PartialState()
    number = state.num_processes * accumulate
    asked = (batch["labels"] != -100).sum()
    parts = [{k: v[i::number] for k, v in batch.items()} | dict(asked=asked) for i in range(number)]
    mine = parts[state.process_index :: state.num_processes]
    if step == spoil and state.process_index == state.num_processes - 1:
        mine[-1]["qformer_features"][0, 0, 0] = float("nan")
    return mine


def loss_of(model, part: dict) -> torch.Tensor:
    "The part's share of the mean over all target tokens of the batch."
    batch = {k: v for k, v in part.items() if k != "asked"}
    return model(**batch, skip_logits=True, use_cache=False).loss * (part["labels"] != -100).sum() / part["asked"]


def train(out: str, scheme="artgpt4", folder=None, steps=STEPS, checkpointing=False, save_every=2, half=False, **how) -> None:
    "Train from the same start as everybody; the first process writes the log and the weights to `out`."
    model = build(scheme)
    if checkpointing:
        getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
    for p in model.parameters():
        p.data = p.data.bfloat16() if half and not p.requires_grad else p.data
    checkpoint = Checkpoint(folder, "mark") if folder else None
    error, log = None, []
    try:
        log = fit(model, functools.partial(parts_at, **how), loss_of, lambda step: 1e-2 / (1 + step), steps,
                  max_grad_norm=1.0, checkpoint=checkpoint, save_every=save_every)  # fmt: skip
    except InputError as e:
        error = str(e)
    weights = {n: whole(p) for n, p in model.named_parameters() if p.requires_grad}
    sharded = all(hasattr(p, "full_tensor") or (hasattr(p, "ds_id") and not p.numel()) for p in model.parameters())
    save_trained(model, f"{out}.safetensors", first=PartialState().is_main_process)
    model.eval()
    with torch.no_grad():
        after = float(model(**samples(99), skip_logits=True).loss)  # in all processes at once, where it lies in pieces
    found = dict(log=log, weights=weights, error=error, sharded=sharded, after=after)
    torch.save(found, f"{out}.{PartialState().process_index}")


def train_twice(out: str, **options) -> None:
    "What a first run leaves behind must not be seen by a second one in the same process."
    train(out, steps=1)
    train(out, **options)


def child(environment: dict, function, *args) -> None:
    torch.set_num_threads(1)
    os.environ.update(environment)
    AcceleratorState._reset_state(reset_partial_state=True)  # what the parent was told
    here()
    if "ACCELERATE_USE_FSDP" in environment:
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    function(*args)
    torch.distributed.barrier()


def run(out, processes=2, environment=None, function=train, **options) -> list[dict]:
    "Train in so many processes; what each of them found."
    function = functools.partial(function, str(out), **options)
    if processes == 1:
        AcceleratorState._reset_state(reset_partial_state=True)
        function()
    else:
        debug_launcher(child, (environment or {}, function), num_processes=processes)
    return [torch.load(f"{out}.{i}", weights_only=True) for i in range(processes)]


def same(a: dict, b: dict) -> None:
    "Losses, norms and weights agree in fp32."
    assert len(a["log"]) == len(b["log"]) > 0 and a["weights"].keys() == b["weights"].keys()
    for x, y in zip(a["log"], b["log"]):
        assert x["loss"] == pytest.approx(y["loss"], rel=1e-5) and x["grad_norm"] == pytest.approx(y["grad_norm"], rel=1e-4)
        assert x["parts"] == pytest.approx(y["parts"], rel=2e-3)
    for name, weight in a["weights"].items():
        torch.testing.assert_close(weight, b["weights"][name], rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("scheme, accumulate", [*((s, 1) for s in SCHEMES), ("artgpt4", 2)])
def test_two_processes_are_one(tmp_path, scheme, accumulate):
    (one,) = run(tmp_path / "one", 1, scheme=scheme)
    two = run(tmp_path / "two", 2, scheme=scheme, accumulate=accumulate)
    same(one, two[0])
    assert two[0]["log"] == two[1]["log"] and not two[0]["sharded"]


@pytest.mark.parametrize("scheme, accumulate", [("artgpt4", 1), ("artgpt4", 2), ("lora", 2), ("full", 1)])
@pytest.mark.parametrize("way", WAYS[1:])
def test_sharded_over_two_processes_is_one(tmp_path, way, scheme, accumulate):
    (one,) = run(tmp_path / "one", 1, scheme=scheme)
    two = run(tmp_path / "two", 2, environment_of(way, tmp_path), scheme=scheme, accumulate=accumulate)
    same(one, two[0])
    assert two[0]["log"] == two[1]["log"] and two[0]["sharded"]
    assert two[0]["after"] == pytest.approx(one["after"], rel=1e-4)
    load_trained(build(scheme), f"{tmp_path}/two.safetensors")  # the file that a sharded model wrote fits a whole one


@pytest.mark.parametrize("way", WAYS[1:])
def test_a_run_goes_on_in_other_processes(tmp_path, way):
    "One process, then two, then two with shards, then one again: as if nothing had happened."
    (whole_run,) = run(tmp_path / "whole", 1, steps=9)
    kept = tmp_path / "kept"
    run(tmp_path / "a", 1, folder=kept, steps=3)
    run(tmp_path / "b", 2, folder=kept, steps=5)
    run(tmp_path / "c", 2, environment_of(way, tmp_path), folder=kept, steps=7)
    assert Checkpoint(kept, "mark").steps() == [4, 6]
    (last,) = run(tmp_path / "d", 1, folder=kept, steps=9)
    same(whole_run, last)


@pytest.mark.parametrize("way", WAYS)
def test_two_that_resume_end_in_the_same_bits(tmp_path, way):
    environment = environment_of(way, tmp_path)
    straight = run(tmp_path / "straight", 2, environment, folder=tmp_path / "kept", steps=5)
    again = run(tmp_path / "again", 2, environment, folder=tmp_path / "kept", steps=5)  # from step 4
    for a, b in zip(straight, again):
        assert a["log"] == b["log"] and all(torch.equal(a["weights"][n], b["weights"][n]) for n in a["weights"])


@pytest.mark.parametrize("way", WAYS)
def test_a_nan_in_one_process_stops_both(tmp_path, way):
    for found in run(tmp_path / "nan", 2, environment_of(way, tmp_path), spoil=1):
        assert found["error"] == (
            "step 1, rate 5.0e-03: the loss is nan: the batch's qformer_features are not finite: delete the features and run `dvc repro encode`"
        )


@pytest.mark.parametrize("way", WAYS)
def test_a_checkpoint_of_another_scheme_is_refused_by_both(tmp_path, way):
    run(tmp_path / "one", 1, folder=tmp_path / "kept", steps=3)
    for found in run(tmp_path / "two", 2, environment_of(way, tmp_path), folder=tmp_path / "kept", scheme="projection"):
        assert "a checkpoint of another scheme or size" in found["error"] and found["log"] == []


@pytest.mark.parametrize("way", WAYS[1:])
def test_gradient_checkpointing_changes_no_bit(tmp_path, way):
    (plain,), (saved,) = run(tmp_path / "a", 1), run(tmp_path / "b", 1, checkpointing=True)
    assert plain["log"] == saved["log"]
    same(plain, run(tmp_path / "c", 2, environment_of(way, tmp_path), checkpointing=True)[0])


@pytest.mark.parametrize("way", WAYS)
def test_frozen_weights_may_be_half_and_a_second_run_is_as_the_first(tmp_path, way):
    (one,) = run(tmp_path / "one", 1, half=True)
    same(one, run(tmp_path / "two", 2, environment_of(way, tmp_path), train_twice, half=True)[0])


def test_processes_that_do_not_know_of_each_other_are_refused(tmp_path, monkeypatch):
    AcceleratorState._reset_state(reset_partial_state=True)
    PartialState()
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="WORLD_SIZE is 2, but Accelerate counts 1 processes"):
        fit(build(), parts_at, loss_of, lambda step: 1e-2, 1)


def test_an_older_fsdp_is_refused(tmp_path):
    for found in run(tmp_path / "old", 2, dict(FSDP2, FSDP_VERSION="1")):
        assert "FSDP: needs GPUs, and its version 2" in found["error"]
