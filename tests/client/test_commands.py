"""The commands: each answers 0, 1 or 2, in words or in one line of JSON."""

import importlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from steelyard.chain.errors import InvalidModel, SteelyardError
from steelyard.chain.types import Address
from steelyard.client.account import print_progress
from steelyard.client.commands import rounds, task
from steelyard.client.commands.options import format_table, tell, to_json
from steelyard.client.errors import ClientError
from steelyard.client.explain import Explanation, Part
from steelyard.client.keys import create_key
from steelyard.client.loading import read_rows
from steelyard.client.quantize import build_manifest, quantize_model
from steelyard.client.records import RoundState, TaskState

from .conftest import HOSPITAL, ORGANISATION
from .ledger import Ledger
from .server import serve_ledger

PASSWORD = "correct horse"
HOSPITAL_ADDRESS = Address(bytes.fromhex(HOSPITAL.address[2:]))
APP = """
import numpy as np
from steelyard.client import Result

def train(model, ctx):
    return Result({name: array + np.float32(0.01) for name, array in model.items()}, samples=20)

def evaluate(model, ctx):
    return Result(samples=10, metrics={"accuracy": 0.5})
"""
TASK = """
name = "heart"
model = "model.npz"
rounds = 1
min_clients = 1
max_clients = 1
round_seconds = 600
join_seconds = 600
reward = "2.5"
stake_per_sample = "0.01"
metrics = ["accuracy"]
[config]
local_epochs = 1
"""


class Desk:
    """A directory with keys, a task and a client project, and a node's address."""

    def __init__(self, directory: Path, url: str) -> None:
        self.directory, self.url = directory, url

    def run(self, line: str, *, node: bool = True) -> tuple[int, str]:
        """Run one command line; return its exit code and its output."""
        part, *words = line.format(d=self.directory).split()
        module = importlib.import_module("steelyard.client.commands")
        app = getattr(module, part)
        done = CliRunner().invoke(app, [*words, *(["--node", self.url] if node else [])])
        if isinstance(done.exception, SteelyardError):
            raise done.exception
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        return done.exit_code, done.stdout

    def ask(self, line: str, **options: bool) -> tuple[int, object]:
        """As `run`, with the last line of output as JSON."""
        code, output = self.run(line + " --json", **options)
        return code, json.loads(output.splitlines()[-1])


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("keys")
    create_key(directory / "org.key", PASSWORD, bytes(ORGANISATION.key), scrypt_n=2**12)
    create_key(directory / "site.key", PASSWORD, bytes(HOSPITAL.key), scrypt_n=2**12)
    return directory


@pytest.fixture
def desk(keys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    monkeypatch.setenv("STEELYARD_PASSWORD", PASSWORD)
    for name in ("org.key", "site.key"):
        (tmp_path / name).write_bytes((keys / name).read_bytes())
    (tmp_path / "client.py").write_text(APP)
    (tmp_path / "task.toml").write_text(TASK)
    np.savez(tmp_path / "model.npz", weight=np.zeros(4, np.float32))
    with serve_ledger(Ledger()) as url:
        yield Desk(tmp_path, url)


ORG = " --key {d}/org.key --state {d}/org"
SITE = " --key {d}/site.key --state {d}/site"


@pytest.mark.slow
def test_a_task_from_check_to_refund(desk: Desk, tmp_path: Path) -> None:
    assert desk.ask("task check {d}/task.toml")[1]["parameters"]["rounds"] == 1
    assert desk.ask("task list") == (0, [])
    assert desk.ask("task publish {d}/task.toml" + ORG) == (0, {"task": 1})
    assert desk.ask("task publish {d}/task.toml" + ORG) == (0, {"task": 1})
    assert desk.ask("client status 1 --key {d}/site.key")[0] == 1
    assert desk.ask("client list --key {d}/site.key")[1][0]["joined"] is False
    assert desk.ask("client join 1 --samples 50" + SITE)[0] == 0
    code, trial = desk.ask("client dry-run 1 --app {d}/client.py" + SITE)
    assert (code, trial["samples"]) == (0, 20)
    code, summary = desk.ask("client run 1 --app {d}/client.py" + SITE)
    assert (code, summary["state"], summary["submitted"]) == (0, "finished", 1)
    assert summary["claimed"] == str(25 * 10**17)
    assert desk.ask("client claim 1" + SITE) == (1, {"task": 1, "claimed": "0"})
    assert desk.ask("client leave 1" + SITE) == (0, {"task": 1, "returned": str(5 * 10**17)})
    assert desk.run("task watch 1")[1].count("\n") > 8
    code, shown = desk.ask("task show 1")
    assert (code, shown["state"], shown["participants"]) == (0, "finished", [])
    assert desk.ask("round list 1")[1][0]["state"] == "aggregated"
    code, made = desk.ask("task model 1 -o {d}/out.safetensors")
    assert (code, Path(made["path"]).exists()) == (0, True)
    assert desk.ask(f"model show {made['cid']}")[1]["tensors"][0]["name"] == "weight"
    assert desk.ask(f"model get {made['cid']} -o {{d}}/m.model --exact")[1]["cid"] == made["cid"]
    assert desk.ask("model eval {d}/m.model --app {d}/client.py")[1]["metrics"] == {"accuracy": 0.5}
    assert desk.ask("model export {d}/m.model --state {d}/site")[1]["cid"] == made["cid"]
    code, bundle = desk.ask("client bundle 1 -o {d}/bundle")
    assert (code, bundle["files"]) == (0, ["steelyard.json"])
    assert desk.ask("task refund 1" + ORG)[0] == 0
    assert desk.ask("task refund 1" + ORG) == (1, {"task": 1, "refund": "0"})
    shown = desk.ask("task show 1")[1]
    assert {type(amount) for amount in shown["account"].values()} == {str}
    assert "reward          2.5 coins for all rounds together\n" in desk.run("task show 1")[1]
    with pytest.raises(SteelyardError) as caught:
        desk.run("round explain 1 2")
    assert caught.value.code == "round_unknown"


def test_a_model_predicts_rows_with_the_users_own_function(tmp_path: Path) -> None:
    arrays = {"weight": np.array([1.0, -2.0], np.float32)}
    data = quantize_model(arrays, build_manifest(arrays))
    (tmp_path / "m.model").write_bytes(data)
    (tmp_path / "app.py").write_text(
        "def train(model, ctx): ...\ndef predict(model, rows): return rows @ model['weight']\n"
    )
    np.save(tmp_path / "rows.npy", np.array([[3, 1], [0, 1]], np.float32))
    (tmp_path / "rows.csv").write_text("3,1\n0,1\n")
    desk = Desk(tmp_path, "http://127.0.0.1:9")
    for rows in ("rows.npy", "rows.csv"):
        words = f"model predict {{d}}/m.model --app {{d}}/app.py --rows {{d}}/{rows}"
        assert desk.ask(words)[1]["predictions"] == [1.0, -2.0]


@pytest.mark.filterwarnings("ignore:loadtxt")
@pytest.mark.parametrize(
    ("name", "content"),
    [("no.csv", None), ("text.csv", b"a,b\n"), ("empty.csv", b""), ("pickle.npy", b"\x80\x04.")],
)
def test_rows_that_are_no_table_of_numbers_are_refused(
    name: str, content: bytes | None, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ClientError) as caught:
        read_rows(tmp_path / name)
    assert caught.value.code == "rows_file"


@pytest.mark.slow
def test_floats_that_get_wrote_are_no_chain_model_and_say_so(desk: Desk) -> None:
    desk.ask("task publish {d}/task.toml" + ORG)
    desk.ask("task model 1 -o {d}/floats.safetensors")
    with pytest.raises(InvalidModel, match="--exact") as caught:
        desk.run("model eval {d}/floats.safetensors --app {d}/client.py")
    assert caught.value.code == "model_header"


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("rounds = 0", "task_rounds"),
        ('rule = "krum"', "task_rule"),
        ('name = ""', "task_name"),
        ('model = "none.npz"', "model_file"),
        ('bundle = "none"', "bundle_missing"),
        ("wrong_entry = 1", "task_file"),
        ("model = 5", "task_file"),
        ("this is not toml", "task_file"),
    ],
)
def test_a_task_that_the_chain_would_refuse_is_a_no(desk: Desk, line: str, code: str) -> None:
    name = line.partition(" = ")[0]
    kept = [old for old in TASK.splitlines() if old.partition(" = ")[0] != name]
    (desk.directory / "task.toml").write_text("\n".join([line, *kept]))
    answer = desk.ask("task check {d}/task.toml")
    assert (answer[0], answer[1]["ok"], answer[1]["error"]) == (1, False, code)
    said = f"steelyard: {code}: {answer[1]['message']}\n"
    done = CliRunner().invoke(task, ["check", f"{desk.directory}/task.toml", "--node", desk.url])
    assert (done.exit_code, done.stdout, done.stderr) == (1, "", said)


@pytest.mark.slow
def test_a_task_that_cannot_be_read_is_a_no_and_an_absent_node_is_none(desk: Desk) -> None:
    assert desk.ask("task check {d}/none.toml")[1]["error"] == "task_file"
    assert desk.run("task check {d}/none.toml")[0] == 1
    with pytest.raises(SteelyardError) as caught:
        desk.run("task check {d}/task.toml --node http://127.0.0.1:1", node=False)
    assert caught.value.code == "node_unreachable"
    (desk.directory / "task.toml").write_text("rounds = 0\n" + TASK.replace("rounds = 1\n", ""))
    assert desk.run("task check {d}/task.toml --node http://127.0.0.1:1", node=False)[0] == 1


@pytest.mark.parametrize("amount", ['"lots"', '"-5"', "100.5", "true", '"1e-19"', '"1e99"', "[]"])
def test_an_amount_that_is_none_is_told_with_its_field(desk: Desk, amount: str) -> None:
    kept = [line for line in TASK.splitlines() if not line.startswith("reward")]
    (desk.directory / "task.toml").write_text("\n".join([f"reward = {amount}", *kept]))
    code, answer = desk.ask("task check {d}/task.toml")
    assert (code, answer["error"]) == (1, "task_reward")
    assert answer["message"].startswith("reward: ")
    assert 'reward = "1.5"' in answer["message"]


def test_doctor_says_yes_no_or_cannot_tell(desk: Desk, tmp_path: Path) -> None:
    options = " --key {d}/site.key --state {d}/site"
    assert desk.run("client doctor" + options)[0] == 0
    assert desk.run("client doctor --key {d}/none.key --state {d}/site")[0] == 1
    code, findings = desk.ask("client doctor --node http://127.0.0.1:1" + options, node=False)
    assert code == 2
    assert findings[0]["is_good"] is None


@pytest.mark.slow
def test_keys_are_made_shown_and_checked(desk: Desk) -> None:
    code, made = desk.ask("keys new {d}/new.key", node=False)
    assert code == 0
    assert desk.ask("keys show {d}/new.key", node=False)[1]["address"] == made["address"]
    assert desk.ask("keys check {d}/new.key", node=False)[0] == 0
    with pytest.raises(SteelyardError) as caught:
        desk.run("keys new {d}/new.key", node=False)
    assert caught.value.code == "key_exists"


@pytest.mark.slow
@pytest.mark.parametrize("template", ["numpy", "torch", "flower"])
def test_a_new_project_trains_as_it_is(desk: Desk, template: str) -> None:
    from steelyard.client.loading import load_app, read_model_file
    from steelyard.client.training import Context

    assert desk.run(f"new {{d}}/project --template {template}", node=False)[0] == 0
    assert "my first task" in (desk.directory / "project" / "task.toml").read_text()
    app = load_app(desk.directory / "project" / "client.py")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(desk.directory)
        namespace = {"__name__": "__main__"}
        exec((desk.directory / "project" / "client.py").read_text(), namespace)
    arrays = read_model_file(desk.directory / "model.npz")
    context = Context(1, 1, 8, {"local_epochs": 20}, b"\x01" * 20)
    result = app.train(dict(arrays), context)
    assert result.samples == 200
    assert app.evaluate(result.arrays, context).metrics["accuracy"] > 0.6


def test_a_project_is_never_written_over(desk: Desk) -> None:
    with pytest.raises(SteelyardError) as caught:
        desk.run("new {d}", node=False)
    assert caught.value.code == "project_exists"
    with pytest.raises(SteelyardError) as caught:
        desk.run("new {d}/other --template cobol", node=False)
    assert caught.value.code == "template_unknown"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("content", "code"),
    [(None, "app_missing"), ("1 / 0", "app_failed"), ("x = 1", "app_empty")],
)
def test_a_file_without_training_functions_is_refused(
    desk: Desk, content: str | None, code: str
) -> None:
    path = desk.directory / "other.py"
    if content is not None:
        path.write_text(content)
    desk.run("task publish {d}/task.toml" + ORG)
    with pytest.raises(SteelyardError) as caught:
        desk.run("client dry-run 1 --app {d}/other.py" + SITE)
    assert caught.value.code == code


@pytest.mark.parametrize(
    "line",
    [
        "task show 9",
        "round explain 9 1",
        "client status 9 --key {d}/site.key",
        "task watch 9",
        "client bundle 9 -o {d}/x",
    ],
)
def test_an_unknown_task_is_an_error_with_a_code(desk: Desk, line: str) -> None:
    with pytest.raises(SteelyardError) as caught:
        desk.run(line)
    assert caught.value.code == "task_unknown"


@pytest.mark.parametrize("line", ["round show 1 2", "round explain 1 2"])
@pytest.mark.parametrize("state", [RoundState.OPEN, RoundState.SKIPPED, RoundState.STOPPED])
def test_a_round_that_made_no_model_is_shown_all_the_same(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, line: str, state: RoundState
) -> None:
    part = Part(HOSPITAL_ADDRESS, "drawn, did not commit", drawn=True)
    told = Explanation(1, 2, state, "skipped", "", None, 0, (), None, (), (part,))
    monkeypatch.setattr(rounds, "explain_round", lambda *asked: told)
    code, output = desk.run(line)
    assert (code, "drawn, did not commit" in output) == (0, True)
    assert desk.ask(line)[1]["parts"][0]["address"] == HOSPITAL.address


def test_json_keeps_wei_exact_and_names_states() -> None:
    assert to_json({"wei": 10**18, "state": TaskState.RUNNING, "raw": b"\x01"}) == {
        "wei": str(10**18),
        "state": "running",
        "raw": "0x01",
    }


def test_what_strangers_wrote_stays_in_its_place(capsys: pytest.CaptureFixture[str]) -> None:
    evil = "heart\x1b[2K\r\nYES"
    tell({}, format_table([["task", "name"], [1, evil]]), as_json=False)
    tell({}, "ours\n  heart\x1b[2K", as_json=False)
    print_progress(evil)
    said = capsys.readouterr()
    table = "task  name\n1     heart\ufffd[2K\ufffd\ufffdYES\n"
    assert said.out == table + "ours\n  heart\ufffd[2K\n"
    assert said.err.endswith(" heart\ufffd[2K\ufffd\ufffdYES\n")
    assert said.err.count("\n") == 1
