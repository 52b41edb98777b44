from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from tokenizers import Tokenizer

from penstock.errors import InputError, SnapshotError
from penstock.worlds.batches import Batches
from penstock.worlds.checkpoint import Progress
from penstock.worlds.net import Net, NetConfig
from penstock.worlds.runs import load_run, save_run
from penstock.worlds.tokenizer import save_tokenizer
from penstock.worlds.train import TrainConfig, Trainer, learning_rate, main, make_optimizers

TINY = Path(__file__).parents[2] / "penstock" / "models" / "tiny"
SMALL = NetConfig(hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)


@pytest.fixture
def trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trainer:
    return _trainer(tmp_path, monkeypatch)


def _trainer(folder: Path, monkeypatch: pytest.MonkeyPatch, resume: bool = False) -> Trainer:
    monkeypatch.setattr("penstock.worlds.train.NetConfig", lambda vocab_size: SMALL)
    monkeypatch.setattr(
        "penstock.worlds.train.train_tokenizer", lambda: Tokenizer.from_file(str(TINY / "tokenizer.json"))
    )
    text = list(range(2, 3000))
    monkeypatch.setattr("penstock.worlds.train.library_tokens", lambda tokenizer, heldout: text)
    config = TrainConfig(
        out=str(folder / "out"), run=str(folder / "run"), tokens=4096, batch_tokens=512, compile=False, resume=resume
    )
    return Trainer(config, Console(quiet=True))


def test_a_resumed_training_goes_on_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = _trainer(tmp_path, monkeypatch)
    for _ in range(2):
        one.step()
    one.save()
    two = _trainer(tmp_path, monkeypatch, resume=True)
    assert two.state == one.state
    assert [one.step() for _ in range(2)] == [two.step() for _ in range(2)]
    for key, value in one.net.state_dict().items():
        assert torch.equal(value, two.net.state_dict()[key]), key


def test_a_run_ends_with_its_tokens_and_writes_the_model_once_it_can_look_up(trainer: Trainer) -> None:
    trainer.state.has_lookup = True
    trainer.run()
    assert trainer.state.tokens >= 4096
    weights = load_file(Path(trainer.config.out) / "model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.bfloat16}
    assert json.loads((Path(trainer.config.out) / "config.json").read_text())["tie_word_embeddings"] is True


def test_damaged_and_missing_states_are_refused(tmp_path: Path) -> None:
    net = Net(SMALL, torch.Generator().manual_seed(0))
    optimizers = make_optimizers(net, 1e-3)
    with pytest.raises(InputError, match="resume"):
        load_run(tmp_path, net, optimizers, Progress)
    save_run(tmp_path, net, optimizers, Progress())
    path = tmp_path / "state.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(SnapshotError, match="delete the folder"):
        load_run(tmp_path, net, optimizers, Progress)


def test_the_rate_rises_stays_and_falls() -> None:
    config = TrainConfig(tokens=1000, lr=1.0, decay=0.5)
    rates = [
        learning_rate(config, Progress(step=step, tokens=tokens)) for step, tokens in ((0, 0), (99, 400), (200, 750))
    ]
    assert rates == [0.01, 1.0, 0.5]
    assert learning_rate(config, Progress(step=300, tokens=1000)) == 0.02


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("clamped", [False, True])
def test_batches_are_a_function_of_the_step(mixed: bool, clamped: bool) -> None:
    def batch() -> list[torch.Tensor]:
        made = Batches(Tokenizer.from_file(str(TINY / "tokenizer.json")), range(2, 3000), seed=1)
        tokens, weights, view, is_text = made.make(5, 128, 1024, mixed, clamped)
        assert (view is not None) == clamped
        assert tokens.shape[1] == 129
        assert weights.shape[1] == 128
        assert bool(is_text.any()) == mixed
        return [tokens, weights]

    for one, two in zip(batch(), batch()):
        assert torch.equal(one, two)


def test_mistakes_on_the_command_line_are_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "--model", str(tmp_path)]) == 2
    assert "model.safetensors" in capsys.readouterr().err


def test_the_tokenizer_folder_is_written_once(tmp_path: Path) -> None:
    save_tokenizer(Tokenizer.from_file(str(TINY / "tokenizer.json")), tmp_path)
    assert (tmp_path / "tokenizer.json").exists()
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["bos_token"] == "<|bos|>"
