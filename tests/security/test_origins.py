"""What a file of a configuration cannot name though the user's command can: folders, stores with passwords, commands."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import environment

from runner import sync
from runner.errors import UserError
from runner.security import script_words, targets, trust
from runner.system import started
from runner.tracking import delivery, journal


@pytest.fixture
def sent(cli, tmp_path):
    """Run a command with a file of a configuration that was sent here."""

    def run(plain: dict, *words: str):
        folder = tmp_path / "conf/experiment"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "sent.yaml").write_text("# @package _global_\n" + yaml.safe_dump(plain))
        return cli("--config-dir", "conf", *words, "experiment=sent", "max_iterations=2", "report=none")

    return run


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """Give a file of the user's outside the folders of runs."""
    path = tmp_path.parent / f"{tmp_path.name}-victim" / "config.yaml"
    path.parent.mkdir()
    path.write_text("mine")
    return path


def tree(*folders: Path) -> dict[str, str]:
    """Return the digest of each file below folders but for those of runs, of configurations and of the store."""
    files = (path for folder in folders for path in folder.rglob("*") if path.is_file())
    own = [path for path in files if not {folders[0] / "outputs", folders[0] / "conf"} & {*path.parents}]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in own}


def below(path: str, value: object) -> dict:
    """Return a configuration in which a key has a value."""
    for part in reversed(path.split(".")):
        value = {part: value}
    assert isinstance(value, dict)
    return value


ELSEWHERE = ["../{name}-victim/new", "{parent}/{name}-victim/new", "outputs/../../{name}-victim/new", "conf/new", "."]
KEYS = ["hydra.run.dir", "tracking.pending", "hydra.output_subdir"]
SWEEP_KEYS = ["hydra.sweep.dir", "hydra.sweep.subdir", "tracking.pending"]
CASES = [(key, path, ()) for key in KEYS for path in ELSEWHERE if (key, path) != ("hydra.output_subdir", "conf/new")]
CASES += [(key, path, ("-m", "seed=1,2")) for key in SWEEP_KEYS for path in ELSEWHERE[:3]]
CASES += [("tracking.uri", f"sqlite:///{path}/x.db", ()) for path in ELSEWHERE]
CASES += [("hydra.job.name", "../../../../x", ()), ("hydra.job.name", "/tmp/x", ()), ("hydra.job.name", "..", ())]
CASES += [("hydra.job_logging.handlers.file.filename", path, ()) for path in (*ELSEWHERE, "outputs/x.py")]


@pytest.mark.parametrize(("key", "path", "words"), [case for case in CASES if case[:2] != ("hydra.output_subdir", ".")])
def test_a_file_has_nothing_written_outside_the_folders_of_runs(sent, runs, tmp_path, victim, key, path, words):
    value = path.format(name=tmp_path.name, parent=tmp_path.parent)
    before = tree(tmp_path, victim.parent)
    ended = sent(below(key, value), *words)
    assert ended.code == 1 and "Traceback" not in ended.err and key.rpartition(".")[0] in ended.out + ended.err
    assert tree(tmp_path, victim.parent) == before
    assert victim.read_text() == "mine" and not (victim.parent / "new").exists() and runs() == []


@pytest.mark.parametrize(("key", "words"), [("hydra.run.dir", ()), ("tracking.pending", ("-m", "seed=1,2"))])
def test_a_file_has_nothing_written_where_a_link_leads(sent, runs, tmp_path, victim, key, words):
    (tmp_path / "outputs").mkdir(exist_ok=True)
    (tmp_path / "outputs/link").symlink_to(victim.parent)
    ended = sent(below(key, "outputs/link"), *words)
    assert ended.code == 1 and key in ended.err and [*victim.parent.iterdir()] == [victim] and runs() == []


def test_logs_of_hydra_are_in_no_file_that_a_file_names(sent, runs, victim):
    handler = {"class": "logging.FileHandler", "filename": str(victim), "mode": "w"}
    ended = sent({"hydra": {"hydra_logging": {"handlers": {"console": handler}}}})
    assert ended.code == 1 and ended.err.count("\n") == 1 and victim.read_text() == "mine" and runs() == []


def test_the_users_own_words_name_any_folder_and_a_file_those_of_runs(sent, cli, runs, tmp_path):
    assert sent(below("hydra.run.dir", "outputs/mine/here")).code == 0 and (tmp_path / "outputs/mine/here/.hydra").is_dir()
    assert cli("max_iterations=1", "hydra.run.dir=elsewhere/a", "tracking.pending=elsewhere/b").code == 0
    assert cli("max_iterations=1", "seed=1", "hydra.run={dir: elsewhere/c}", "hydra.output_subdir=said").code == 0
    assert cli("-m", "seed=2,3", "hydra.sweep.dir=elsewhere/d", "hydra.sweep.subdir=../e/${hydra.job.num}").code == 0
    assert len(runs()) == 5 and (tmp_path / "elsewhere/c/said").is_dir() and (tmp_path / "elsewhere/e/1").is_dir()


SERVER = "http://user@127.0.0.1:9"
HELD = [
    *((name, SERVER) for name in ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_AUTH", ".netrc")),
    *((name, "postgresql+psycopg://user@127.0.0.1:9/x") for name in ("PGPASSWORD", "PGPASSFILE", ".pgpass")),
    *(
        (".mlflow/credentials", SERVER),
        ("nothing", "postgresql://127.0.0.1:9/x?passfile=/etc/passwd"),
        ("nothing", "mysql://127.0.0.1"),
    ),
]


def hold(name: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the user a password, in a variable or in a file of the home folder, and no other one."""
    for each in (*trust.TO_SERVERS, *trust.TO_POSTGRESQL, "NETRC", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(each, raising=False)
    monkeypatch.setenv("HOME", str(home))
    if name.startswith("."):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text("machine 127.0.0.1 login user password SECRETPW\n")
        (home / name).chmod(0o600)
    elif name != "nothing":
        monkeypatch.setenv(name, "SECRETPW")


@pytest.mark.parametrize(("name", "uri"), HELD)
def test_a_password_goes_to_no_store_that_a_file_names(sent, cli, tmp_path, monkeypatch, name, uri):
    hold(name, tmp_path / "home", monkeypatch)
    for words in ((), ("-m", "seed=1,2")):
        ended = sent(below("tracking.uri", uri), *words)
        told = ended.out + ended.err
        assert ended.code == 1 and "comes from a file, and would be sent" in told and "SECRETPW" not in told
    hold("nothing", tmp_path / "empty", monkeypatch)
    if name != "nothing":
        assert "comes from a file" not in sent(below("tracking.uri", uri)).err, "there is nothing to be sent"
    hold(name, tmp_path / "home", monkeypatch)
    with trust.command([f"tracking.uri='{uri}'"]):
        trust.store("tracking.uri", uri)
    with trust.command([]):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        trust.store("tracking.uri", uri, "MLFLOW_TRACKING_URI")
        with pytest.raises(UserError, match=r"hydra\.sweeper\.storage"):
            trust.store("hydra.sweeper.storage", uri)


def test_a_password_goes_to_no_store_that_a_spool_names(cli, tmp_path, monkeypatch, capfd):
    hold("MLFLOW_TRACKING_PASSWORD", tmp_path / "home", monkeypatch)
    assert cli("max_iterations=2", "report=none", "tracking.offline=true", f"tracking.uri={SERVER}").code == 0
    capfd.readouterr()
    assert sync.main([]) == 1 and "would be sent your MLFLOW_TRACKING_PASSWORD" in capfd.readouterr().err
    for named_so in (["--tracking-uri", SERVER], []):
        assert sync.main([*named_so, "--timeout", "0"]) == 1 and "would be sent" not in capfd.readouterr().err
        monkeypatch.setenv("MLFLOW_TRACKING_URI", SERVER)
    assert len(list(journal.pointers(tmp_path / "outputs/pending"))) == 1


NEW = ["sqlite:///{victim}/new/x.db", "sqlite:///{victim}/empty", "sqlite:///outputs/../x.db", "sqlite:///outputs/link/x.db"]


@pytest.mark.parametrize("uri", NEW)
def test_a_spool_has_no_database_made_where_the_user_names_none(cli, runs, tmp_path, victim, capfd, uri):
    (victim.parent / "empty").touch()
    (tmp_path / "outputs/link").symlink_to(victim.parent)
    uri = uri.format(victim=victim.parent)
    before = tree(tmp_path, victim.parent)
    assert cli("max_iterations=2", "report=none", "tracking.offline=true", f"tracking.uri={uri}").code == 0
    (path,) = tmp_path.glob("outputs/runs/*/*/spool")
    said = {
        "keys": journal.first(path)["keys"],
        "run_id": "0" * 32,
        "status": "FINISHED",
        "tags": {},
        "metrics": {},
        "table": {},
    }
    ends = tmp_path / "outputs/pending/sweeps" / f"{'0' * 32}.json"
    ends.parent.mkdir()
    ends.write_text(json.dumps(said))
    capfd.readouterr()
    assert sync.main([]) == 1 and capfd.readouterr().err.count("is not there, and is made below outputs alone; if you") == 2
    # The run that comes next, in another store, sends nothing to it either.
    delivery.quietly(tmp_path / "outputs/pending", tmp_path, "sqlite:///outputs/mlflow.db")
    assert tree(tmp_path, victim.parent) == before and path.exists() and runs() == []
    ends.unlink()
    assert sync.main(["--tracking-uri", uri]) == 0 and not path.exists()


def test_a_spool_has_its_database_made_beside_its_run_wherever_it_is_sent_from(cli, tmp_path, monkeypatch):
    assert cli("max_iterations=2", "report=none", "tracking.offline=true").code == 0
    (path,) = tmp_path.glob("outputs/runs/*/*/spool")
    (tmp_path / "outputs/mlflow.db").unlink()
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    monkeypatch.setattr(started, "_folder", None)
    assert sync.main([str(path.parent)]) == 0 and (tmp_path / "outputs/mlflow.db").exists()


LINES = [
    "a' \ntouch canary\n'",
    "a\ntouch canary",
    "$(touch canary)",
    "`touch canary`",
    "a;touch canary",
    'a"b',
    "a\x00b",
    "a\\\nb",
]


@pytest.mark.parametrize("launcher", ["slurm", "submitit_local"])
@pytest.mark.parametrize("line", LINES)
def test_no_setting_of_a_cluster_is_a_command(line, launcher):
    for key in script_words.SUBMITIT:
        with pytest.raises(UserError, match=rf"hydra\.launcher\.{key} must be"):
            script_words.check({key: line}, script_words.SUBMITIT)
    for key in ("setup", "teardown", "python", "srun_args", "additional_parameters", "anything"):
        with pytest.raises(UserError, match=rf"--allow-target hydra\.launcher\.{key}"):
            script_words.check({key: [line]}, script_words.SUBMITIT)


def test_what_a_slurm_script_is_made_of_is_the_users(tmp_path, monkeypatch):
    """Submitit's own writer of scripts, with all that is let through."""
    from submitit.slurm.slurm import _make_sbatch_string

    settings = {
        **{"comment": "lr sweep, 2nd (a=b)", "partition": "gpu,debug", "gres": "gpu:a100:2", "constraint": "[a|b]&!c"},
        **{
            "exclude": "node[01-03],x5",
            "mail_type": "END,FAIL",
            "mail_user": "me@example.org",
            "mem_per_cpu": "4GB",
            "qos": None,
        },
        **{"dependency": "afterok:12:13", "nodelist": "n[1-2]", "account": "a/b", "array_parallelism": 4, "setup": None},
    }
    script_words.check(settings, script_words.SUBMITIT)
    script = _make_sbatch_string("true", tmp_path, **settings)
    assert next(line for line in script.splitlines() if line and not line.startswith("#")) == "export SUBMITIT_EXECUTOR=slurm"
    monkeypatch.setenv(targets.VARIABLE, "hydra.launcher.setup")
    script_words.check({"setup": ["module load cuda"]}, script_words.SUBMITIT)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"comment": "a'\ntouch canary\n'"}, ()),
        ({"teardown": ["touch canary"]}, ()),
        ({"_target_": "hydra_plugins.hydra_submitit_launcher.submitit_launcher.LocalLauncher"}, ()),
        ({"submitit_folder": "../elsewhere/%j"}, ()),
    ],
)
def test_a_launcher_of_a_file_runs_no_commands(sent, runs, tmp_path, settings, words):
    (tmp_path / "conf/hydra/launcher").mkdir(parents=True)
    (tmp_path / "conf/hydra/launcher/mine.yaml").write_text(yaml.safe_dump({"defaults": ["submitit_local"], **settings}))
    ended = sent({}, "-m", "seed=1,2", "hydra/launcher=mine", *words)
    assert ended.code == 1 and ended.err.count("\n") == 1 and "hydra.launcher." in ended.err, ended
    assert not list(tmp_path.rglob("canary")) and runs() == [] and not (tmp_path.parent / "elsewhere").exists()


@pytest.mark.parametrize("value", ["__import__('os').system('touch canary')", "n_jobs.__class__", "2*n_jobs;1"])
def test_joblib_evaluates_no_words(value):
    with pytest.raises(UserError, match="pre_dispatch"):
        script_words.check({"pre_dispatch": value}, script_words.JOBLIB)
    script_words.check({"pre_dispatch": "2*n_jobs", "batch_size": "auto", "n_jobs": -1, "backend": "loky"}, script_words.JOBLIB)


def test_a_ray_cluster_is_one_that_the_user_names(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with trust.command([]):
        for init in (
            {"address": "evil:6379"},
            {"_temp_dir": "/x"},
            {"dashboard_host": "0.0.0.0"},
            {"runtime_env": {"pip": ["evil"]}},
        ):
            with pytest.raises(UserError, match=r"hydra\.launcher\.ray\.init"):
                script_words.ray({"init": init, "remote": {}})
    with trust.command(["hydra.launcher.ray.init.address=head:6379"]):
        script_words.ray({"init": {"address": "head:6379", "include_dashboard": False}, "remote": {"num_cpus": 1}})


VARIABLES = [
    "TF_PLUGGABLE_DEVICE_LIBRARY_PATH",
    "TF_XLA_FLAGS",
    "TF_CONFIG",
    "OMP_TOOL_LIBRARIES",
    "MKL_VERBOSE",
    "CUDA_VISIBLE_X",
]


@pytest.mark.parametrize("name", VARIABLES)
def test_a_variable_that_is_not_known_is_not_set(sent, runs, name):
    ended = sent(below(f"hydra.job.env_set.{name}", "./evil.so"))
    assert ended.code == 1 and f"hydra.job.env_set.{name} is not allowed" in ended.err and runs() == []


def test_a_variable_that_is_known_is_set_and_holds_no_path(sent, runs):
    ended = sent(below("hydra.job.env_set.OMP_NUM_THREADS", "./evil.so"))
    assert ended.code == 1 and "hydra.job.env_set.OMP_NUM_THREADS" in ended.err and runs() == []
    assert sent(below("hydra.job.env_set.OMP_NUM_THREADS", 1)).code == 0


CODE = "open('canary', 'w').close()\n"


@pytest.mark.parametrize("words", [("tracking=none",), ("-m", "seed=1", "tracking=none"), ("--info", "plugins")])
def test_a_folder_of_plugins_beside_the_command_is_none(tmp_path, words):
    for name in ("hydra_plugins/__init__.py", "hydra_plugins/evil/__init__.py", "hydra_plugins/runner_sweeps/__init__.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(CODE)
    command = [sys.executable, "-m", "runner", *words, "max_iterations=1"]
    ended = subprocess.run(command, cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0 and not (tmp_path / "canary").exists(), ended.stderr


def test_workers_find_no_plugins_beside_the_command_either(tmp_path):
    from runner.sweeps.launchers import import_path

    (tmp_path / "hydra_plugins").mkdir()
    (tmp_path / "hydra_plugins/__init__.py").write_text(CODE)
    code = "import hydra_plugins.runner_sweeps, hydra_plugins.hydra_joblib_launcher"
    variables = environment() | {"PYTHONPATH": import_path() + os.pathsep + str(tmp_path), "PYTHONSAFEPATH": "1"}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=variables, check=True, timeout=60)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("path", ["pkg://evil", "pkg://evil.below", "structured://", "s3://x"])
def test_a_search_path_imports_nothing(cli, tmp_path, monkeypatch, path):
    (tmp_path / "evil").mkdir()
    (tmp_path / "evil/__init__.py").write_text(CODE)
    (tmp_path / "conf").mkdir()
    primary = {"defaults": ["config", "_self_"], "hydra": {"searchpath": [path]}}
    (tmp_path / "conf/mine.yaml").write_text(yaml.safe_dump(primary))
    monkeypatch.syspath_prepend(tmp_path)
    for words in (
        (f"hydra.searchpath=['{path}']",),
        ("--config-dir", "conf", "--config-name", "mine"),
        ("-m", "seed=1,2", f"+hydra.sweeper.params={{hydra.searchpath: \"['{path}']\"}}"),
    ):
        ended = cli(*words, "tracking=none", "max_iterations=1")
        assert ended.code == 1 and "hydra.searchpath" in ended.err and not (tmp_path / "canary").exists(), ended


def test_a_search_path_of_the_users_own_words_is_taken(cli, tmp_path):
    (tmp_path / "mine/optimizer").mkdir(parents=True)
    (tmp_path / "mine/optimizer/own.yaml").write_text("_target_: keras.optimizers.SGD\nlearning_rate: 0.2\n")
    for path in ("mine", f"file://{tmp_path}/mine"):
        assert cli(f"hydra.searchpath=['{path}']", "optimizer=own", "tracking=none", "max_iterations=1").code == 0


def test_an_experiment_is_named_by_the_environment_where_the_user_gives_no_other_name(cli, sent, runs, tmp_path, monkeypatch):
    from conftest import store

    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "theirs")
    assert cli("max_iterations=1").code == 0 and cli("max_iterations=1", "tracking.experiment=mine").code == 0
    assert cli("-m", "seed=1,2", "max_iterations=1").code == 0
    client = store(tmp_path)
    names = {each.experiment_id: each.name for each in client.search_experiments()}
    assert [names[run.info.experiment_id] for run in runs()] == ["theirs", "mine", "theirs", "theirs"]


def test_what_the_users_words_name_is_read_as_hydra_reads_them():
    words = ["-m", "a=1", "+hydra.run={dir: x}", "++tracking.uri=a,b", "tracking=mine", "--config-dir", "x=1", "~stopping"]
    with trust.command(words):
        told = {key: trust.given(key) for key in ("a", "hydra.run.dir", "hydra.run.x", "tracking.uri", "tracking.pending", "b")}
    assert told == {key: key in ("a", "hydra.run.dir", "tracking.uri") for key in told}
    assert trust.given("b"), "where there is no command, all is the user's"


def test_a_job_knows_the_users_words_wherever_it_arrives(tmp_path, monkeypatch):
    import pickle

    from runner.sweeps.task import Task

    with trust.command(["tracking.uri=sqlite:///x.db"]):
        task = Task(tmp_path, False)
    monkeypatch.setattr("runner.system.orphans.end_with", lambda *_: None)
    monkeypatch.setattr("runner.config.schema.register", lambda: None)
    mask = os.umask(0o077)
    try:
        # Where it arrives it takes that folder for the command's, which this process goes on without.
        with started.here():
            pickle.loads(pickle.dumps(task))
        assert trust.given("tracking.uri") and not trust.given("tracking.pending")
    finally:
        trust.arrive(None)
        os.umask(mask)
