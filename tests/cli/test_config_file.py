"""Options from a YAML file, and figures as JSON on standard output."""

import json

import pytest


def test_options_from_a_file(run, model_folder, text_file, tmp_path):
    config = tmp_path / "eval.yaml"
    config.write_text(
        f"model: {model_folder}\nmask: [causal, 'window:4']\nlayer: {{0: 'strided:2'}}\ndata: {text_file}\n"
        "context: 24\nmax-tokens: 65\nbatch_size: 2\nreplace-model-window: false\n"
    )
    code, out, err = run("eval", "--config", config, "--json")
    assert code == 0, err
    report = json.loads(out)
    assert [row["mask"] for row in report["rows"]] == ["causal", "window:4"]
    assert [row["layers"] for row in report["rows"]] == [{"0": "strided:2"}] * 2
    assert (report["context"], report["model"]) == (24, str(model_folder))
    assert "perplexity" in err
    # The command line overrides the file.
    report = json.loads(run("eval", "--config", config, "--json", "--context", "16", "--mask", "sinks:1|window:2")[1])
    assert (report["context"], [row["mask"] for row in report["rows"]]) == (16, ["sinks:1|window:2"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("contxt: 3", "has 'contxt', which this command lacks; it takes"),
        ("[1, 2]", "must map options to values, such as 'context: 1024', got list"),
        ("a: [", "is not YAML"),
        ("context: [1, 2]", "context takes one value, got [1, 2]"),
        ("context: many", "--context"),
        ("config: x.yaml", "has 'config', which this command lacks"),
    ],
)
def test_a_wrong_file(run, model_folder, tmp_path, content, message):
    path = tmp_path / "x.yaml"
    path.write_text(content)
    code, out, err = run("eval", model_folder, "--config", path)
    assert (code, out) == (2, "") and message in err and err.count("\n") == 1


def test_a_file_that_is_not_there(run, model_folder):
    assert run("eval", model_folder, "--config", "nowhere.yaml") == (
        2, "", "error: nowhere.yaml: No such file or directory\n",
    )  # fmt: skip


def test_figures_go_to_one_place(run, model_folder):
    code, out, err = run("eval", model_folder, "--json", "--output", "x.json")
    assert (code, out) == (2, "") and "give one of them" in err
