"""What ``evaluate`` prints: its table explains itself, and its hints name its own options."""

from helpers.command_line import REPOSITORY
from helpers.command_outputs import get_error_sentence

from lightning_ddpm.commands.evaluation_report import print_metrics

DIGITS = REPOSITORY / "checkpoints" / "pretrained" / "digits.ckpt"


def test_what_stands_behind_plus_minus_is_explained(capsys) -> None:
    print_metrics(
        {
            "fid": {"value": 3.0, "protocol": "Inception"},
            "kid": {"value": 0.1, "std": 0.02, "protocol": "Inception"},
            "bits_per_dim": {"value": 3.5, "standard_error": 0.1, "protocol": "bound"},
        },
        100,
    )
    *table, first, second = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in table] == ["fid", "kid", "bits_per_dim"]
    assert first == "+- of kid: standard deviation over its subsets or splits"
    assert second == "+- of bits_per_dim: standard error of the mean"
    print_metrics({"fid": {"value": 3.0, "protocol": "Inception"}}, 100)
    assert "+-" not in capsys.readouterr().out


def test_missing_data_suggest_the_option_of_this_command(command, offline, tmp_path) -> None:
    options = ("--reference", "MNIST", "--root", tmp_path, "--extractor", "DigitsFeatures", "--n", "8")
    status, _, err = command("evaluate", "--ckpt", DIGITS, *options)
    message = get_error_sentence(status, err)
    assert "or set --root to the folder that has it" in message
    assert "data.root" not in message
    assert len(message.splitlines()) == 1
