from __future__ import annotations

import json
import pickletools
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import zarr
from sklearn.exceptions import NotFittedError

import dask_dml as dml
from dask_dml.data.store import load_arrays, save_arrays
from dask_dml.errors import CorruptChunkError, StoreExistsError, StoreFormatError
from dask_dml.linear_model import LinearRegression, LogisticRegression, Ridge

LOCAL = dml.Runtime(client="local")
RNG = np.random.default_rng(0)
X = RNG.normal(size=(90, 3))
CODES = RNG.permutation(np.arange(90) % 3)

MODELS = {
    "binary": lambda: LogisticRegression(runtime=LOCAL).fit(X, CODES > 0),
    "strings": lambda: LogisticRegression(runtime=LOCAL).fit(X, np.array(["a", "bé", "c"])[CODES]),
    "objects": lambda: LogisticRegression(runtime=LOCAL).fit(
        X, np.array(["a", "bb", "c"], dtype=object)[CODES]
    ),
    "integers": lambda: LogisticRegression(runtime=LOCAL).fit(X, CODES.astype(np.int16) * 1000),
    "floats": lambda: LogisticRegression(runtime=LOCAL).fit(X, (CODES - 1).astype(np.float32)),
    "no penalty": lambda: LogisticRegression(np.inf, fit_intercept=False, runtime=LOCAL).fit(
        X, CODES
    ),
    "weights of integers": lambda: LogisticRegression(
        class_weight={0: 2.0, 1: np.float32(0.1), np.int64(2): 1}, C=np.float64(0.3), runtime=LOCAL
    ).fit(X, CODES),
    "weights of strings": lambda: LogisticRegression(
        class_weight={"a": 2.5}, max_iter=7, tol=1e-3, runtime=LOCAL
    ).fit(X, np.array(["a", "b"])[CODES % 2]),
    "balanced": lambda: LogisticRegression(class_weight="balanced", runtime=LOCAL).fit(X, CODES),
    "names": lambda: LogisticRegression(runtime=LOCAL).fit(
        pd.DataFrame(X, columns=["dep delay", "météo", "x"]), CODES
    ),
    "uncertified": lambda: LogisticRegression(solver="lbfgs", runtime=LOCAL).fit(
        RNG.normal(size=(90, 2001)), CODES > 0
    ),
    "linear": lambda: LinearRegression(runtime=LOCAL).fit(X, X[:, 0] + RNG.normal(size=90)),
    "ridge": lambda: Ridge(0.1, solver="lbfgs", runtime=LOCAL).fit(X, RNG.normal(size=90)),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_saved_model_comes_back_with_the_same_bits(name, tmp_path):
    model = MODELS[name]()
    model.save(tmp_path / "m.zarr")
    loaded = dml.load_model(tmp_path / "m.zarr")
    assert type(loaded) is type(model)
    for attribute in ("coef_", "intercept_", "classes_", "feature_names_in_"):
        assert hasattr(loaded, attribute) == hasattr(model, attribute)
        if hasattr(model, attribute):
            mine, theirs = (np.asarray(getattr(m, attribute)) for m in (model, loaded))
            assert theirs.dtype == mine.dtype
            assert theirs.shape == mine.shape
            np.testing.assert_array_equal(theirs, mine)
    assert loaded.coef_.tobytes() == model.coef_.tobytes()
    assert type(loaded.intercept_) is type(model.intercept_)
    np.testing.assert_equal(
        (loaded.gap_, loaded.n_iter_, loaded.n_passes_, loaded.n_features_in_),
        (model.gap_, model.n_iter_, model.n_passes_, model.n_features_in_),
    )
    mine, theirs = model.get_params(), loaded.get_params()
    assert theirs.pop("runtime") is None
    mine.pop("runtime")
    assert theirs == mine
    new = RNG.normal(size=(50, model.n_features_in_))
    if name == "names":
        new = pd.DataFrame(new, columns=model.feature_names_in_)
    for method in ("predict", "predict_proba"):
        if hasattr(model, method):
            np.testing.assert_array_equal(getattr(loaded, method)(new), getattr(model, method)(new))
            assert getattr(loaded, method)(new).dtype == getattr(model, method)(new).dtype


def test_a_loaded_model_can_be_saved_and_fitted_again(tmp_path):
    MODELS["strings"]().save(tmp_path / "a.zarr")
    loaded = dml.load_model(str(tmp_path / "a.zarr"))
    loaded.save(tmp_path / "b.zarr")
    again = dml.load_model(tmp_path / "b.zarr")
    assert again.coef_.tobytes() == loaded.coef_.tobytes()
    again.set_params(runtime=LOCAL, warm_start=True).fit(X, np.array(["a", "b", "c"])[CODES])
    assert len(again.history_) <= 2


def looks_like_pickle(content: bytes) -> bool:
    try:
        return sum(1 for _ in pickletools.genops(content)) > 1
    except ValueError:
        return False


def test_there_is_no_pickle_in_a_store(tmp_path):
    for name, make in MODELS.items():
        make().save(tmp_path / f"{name}.zarr")
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) >= 3 * len(MODELS)
    for path in files:
        content = path.read_bytes()
        assert not looks_like_pickle(content), path
        assert b"\x80\x04\x95" not in content, path
        assert b"pickle" not in content, path


def test_other_languages_read_a_model_with_zarr_and_json(tmp_path):
    model = MODELS["names"]()
    model.save(tmp_path / "m.zarr")
    root = json.loads((tmp_path / "m.zarr" / "zarr.json").read_text(encoding="utf-8"))
    manifest = root["attributes"]["dask_dml"]
    assert manifest["kind"] == "model"
    said = manifest["attributes"]
    assert said["estimator"] == "LogisticRegression"
    assert said["feature_names"] == ["dep delay", "météo", "x"]
    assert said["classes"]["values"] == [0, 1, 2]
    assert said["n_features"] == 3
    assert said["parameters"]["C"] == 1.0
    group = zarr.open_group(tmp_path / "m.zarr", mode="r")
    coef, intercept = np.asarray(group["coef"]), np.asarray(group["intercept"])
    scores = X @ coef.T + intercept
    labels = np.array(said["classes"]["values"])[scores.argmax(axis=1)]
    frame = pd.DataFrame(X, columns=said["feature_names"])
    np.testing.assert_array_equal(labels, model.predict(frame))


def test_a_model_needs_nothing_of_the_process_that_saved_it(tmp_path):
    model = MODELS["strings"]()
    model.save(tmp_path / "m.zarr")
    script = (
        "import sys, numpy as np, dask_dml as dml\n"
        "model = dml.load_model(sys.argv[1])\n"
        "sys.stdout.write(model.coef_.tobytes().hex())\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "m.zarr")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout == model.coef_.tobytes().hex()


def test_an_existing_store_is_kept_unless_overwrite(tmp_path):
    first, second = MODELS["binary"](), MODELS["ridge"]()
    first.save(tmp_path / "m.zarr")
    with pytest.raises(StoreExistsError, match="overwrite=True"):
        second.save(tmp_path / "m.zarr")
    assert dml.load_model(tmp_path / "m.zarr").coef_.tobytes() == first.coef_.tobytes()
    second.save(tmp_path / "m.zarr", overwrite=True)
    assert isinstance(dml.load_model(tmp_path / "m.zarr"), Ridge)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(StoreExistsError):
        first.save(tmp_path / "notes.txt", overwrite=True)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_model_that_is_not_fitted_is_not_saved(tmp_path):
    for make in (LogisticRegression, LinearRegression, Ridge):
        with pytest.raises(NotFittedError):
            make().save(tmp_path / "m.zarr")
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_model_is_refused(tmp_path):
    with pytest.raises(StoreFormatError, match="nothing at"):
        dml.load_model(tmp_path / "none.zarr")
    dml.write_dataset(tmp_path / "data.zarr", X, CODES)
    with pytest.raises(StoreFormatError, match=r"holds a dataset, not a model.*open_dataset"):
        dml.load_model(tmp_path / "data.zarr")
    zarr.create_group(tmp_path / "foreign.zarr")
    with pytest.raises(StoreFormatError, match="did not write"):
        dml.load_model(tmp_path / "foreign.zarr")
    save_arrays(tmp_path / "other.zarr", {"a": np.zeros(2)}, {"kind": "scaler"})
    with pytest.raises(StoreFormatError, match="found kind 'scaler'"):
        dml.load_model(tmp_path / "other.zarr")
    MODELS["binary"]().save(tmp_path / "m.zarr")
    with pytest.raises(StoreFormatError, match=r"holds a model, not a dataset.*load_model"):
        dml.open_dataset(tmp_path / "m.zarr")


@pytest.mark.parametrize("level", ["store", "model"])
def test_a_newer_format_is_refused(tmp_path, level):
    MODELS["binary"]().save(tmp_path / "m.zarr")
    path = tmp_path / "m.zarr" / "zarr.json"
    root = json.loads(path.read_text(encoding="utf-8"))
    manifest = root["attributes"]["dask_dml"]
    (manifest if level == "store" else manifest["attributes"])["format"] = 99
    path.write_text(json.dumps(root), encoding="utf-8")
    with pytest.raises(StoreFormatError, match="format 99"):
        dml.load_model(tmp_path / "m.zarr")


def test_an_unknown_estimator_is_refused_and_nothing_of_that_name_is_made(tmp_path):
    MODELS["ridge"]().save(tmp_path / "m.zarr")
    arrays, attributes = load_arrays(tmp_path / "m.zarr")
    save_arrays(tmp_path / "x.zarr", arrays, {**attributes, "estimator": "Popen"})
    with pytest.raises(StoreFormatError, match="estimator 'Popen'"):
        dml.load_model(tmp_path / "x.zarr")


def test_a_flipped_byte_of_a_model_is_an_error(tmp_path):
    MODELS["ridge"]().save(tmp_path / "m.zarr")
    chunk = next(p for p in (tmp_path / "m.zarr" / "coef" / "c").rglob("*") if p.is_file())
    content = bytearray(chunk.read_bytes())
    content[len(content) // 2] ^= 1
    chunk.write_bytes(content)
    with pytest.raises(CorruptChunkError, match="'coef'"):
        dml.load_model(tmp_path / "m.zarr")
