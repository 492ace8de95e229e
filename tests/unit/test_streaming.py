"""Streams of parquet files: their order, their rows, and the cache."""

import io
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mixer_finetune import ImageDataModule, UserError
from mixer_finetune.backbones import Preprocessing
from mixer_finetune.data import streaming
from mixer_finetune.data.batches import DecodedImages
from mixer_finetune.data.sampling import MicroBatch
from mixer_finetune.data.streaming import streamed_order

ROWS, GROUP = 60, 7


@pytest.fixture(autouse=True)
def own_folder(monkeypatch, tmp_path):
    """The cache of a test alone."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "home"))


def png(i):
    buffer = io.BytesIO()
    Image.new("RGB", (12, 10), (4 * i, 255 - 4 * i, i)).save(buffer, "PNG")
    return buffer.getvalue()


def write(path, images=None, labels=None, group=GROUP):
    images = images or [{"bytes": png(i), "path": f"{i}.png"} for i in range(ROWS)]
    labels = labels or [f"c{i % 3}" for i in range(len(images))]
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    columns = {"image": pa.array(images, kind), "label": pa.array(labels)}
    features = {"image": {"_type": "Image"}, "label": {"dtype": "string", "_type": "Value"}}
    table = pa.table(columns).replace_schema_metadata({"huggingface": repr_json({"info": {"features": features}})})
    pq.write_table(table, path, row_group_size=group)
    return str(path)


def repr_json(value):
    import json

    return json.dumps(value)


@pytest.mark.parametrize("buffer", [1, 10, 1000])
def test_the_order_is_a_permutation_of_seed_and_epoch_that_takes_few_groups_at_once(buffer):
    groups = np.repeat(np.arange(40), 25)[np.random.default_rng(0).random(1000) < 0.8]
    orders = [streamed_order(groups, seed, epoch, buffer) for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    for order in orders:
        assert sorted(order.tolist()) == list(range(len(groups)))
        touched = [len(set(groups[order[i : i + 20]].tolist())) for i in range(0, len(order), 20)]
        assert max(touched) <= 2 + (20 + buffer) // 20
    assert orders[0].tolist() != orders[1].tolist() != orders[2].tolist()
    assert streamed_order(groups, 0, 1, buffer).tolist() == orders[1].tolist()
    # A sample comes at most `buffer` places later than when the groups are taken one by one.
    first_of = {g: np.flatnonzero(groups[orders[0]] == g).min() for g in set(groups.tolist())}
    last_of = {g: np.flatnonzero(groups[orders[0]] == g).max() for g in first_of}
    assert max(last_of[g] - first_of[g] for g in first_of) <= 25 + buffer


def test_a_stream_gives_the_images_and_labels_of_the_file(tmp_path):
    path = write(tmp_path / "train.parquet")
    whole, stream = (ImageDataModule(path, stream=on, val_fraction=0.2, stream_buffer=20) for on in (False, True))
    assert stream.label_names == whole.label_names and "streamed images" in stream.description
    for role in ("train", "val"):
        a, b = whole.splits[role], stream.splits[role]
        assert (a.labels == b.labels).all() and (a.rows == b.rows).all()
        at = np.random.default_rng(0).permutation(len(a))
        assert a.image_records(at) == b.image_records(at)
    samples = np.concatenate([micro.indices for micro in stream.batch_plan(0, 1, 1)])
    assert sorted(samples.tolist()) == list(range(len(stream.splits["train"])))


def test_each_group_is_fetched_once_whatever_the_number_of_processes(tmp_path, monkeypatch):
    stream = ImageDataModule(write(tmp_path / "train.parquet"), stream=True, val_fraction=0.0, stream_buffer=20)
    fetched = []
    read = streaming.StreamedRecords._fetch
    monkeypatch.setattr(streaming.StreamedRecords, "_fetch", lambda self, *a: (fetched.append(a[1]), read(self, *a))[1])
    for records in (stream.splits["train"].records, pickle.loads(pickle.dumps(stream.splits["train"].records))):
        assert len(records[list(range(ROWS))]["image"]) == ROWS
    assert sorted(fetched) == list(range(9))


def test_the_cache_keeps_to_its_size(tmp_path):
    noise = np.random.default_rng(0)
    images = [{"bytes": noise.bytes(10_000), "path": None} for _ in range(40)]
    path = write(tmp_path / "train.parquet", images, group=4)
    stream = ImageDataModule(path, stream=True, stream_cache_gb=130e-6, stream_buffer=1, val_fraction=0.0)
    records = stream.splits["train"].records
    for row in (*range(40), 3, 39, 0):
        assert records[[row]]["image"][0]["bytes"] == images[row]["bytes"]
        files = list((tmp_path / "home" / "mixer_finetune" / "streamed").glob("*.arrow"))
        assert 0 < sum(file.stat().st_size for file in files) <= 130_000
    with pytest.raises(UserError, match="10 shuffled images take about .* GB, more than the cache has; raise"):
        ImageDataModule(path, stream=True, stream_cache_gb=130e-6, stream_buffer=10)


def test_a_row_has_no_file_of_this_machine_read(tmp_path):
    (tmp_path / "secret.png").write_bytes(png(1))
    images = [{"bytes": png(0), "path": "0.png"}, {"bytes": None, "path": str(tmp_path / "secret.png")}]
    stream = ImageDataModule(write(tmp_path / "train.parquet", images), stream=True, val_fraction=0.0)
    data = DecodedImages(stream.splits["train"], Preprocessing(image_size=(8, 8)))
    batch = data.__getitems__(MicroBatch(0, np.arange(2), 0, 2, np.arange(2)))
    assert batch.indices.tolist() == [0] and "secret.png can't be decoded" in batch.bad[0][1]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"stream_buffer": 0}, "stream_buffer"),
        ({"stream_cache_gb": 0.0}, "stream_cache_gb must be above 0"),
        ({"sampling": "balanced"}, "balanced sampling takes images from anywhere"),
        ({"label_column": "fruit"}, "'fruit' is not a label column"),
    ],
)
def test_what_a_stream_can_not_do_is_refused(tmp_path, options, said):
    with pytest.raises(UserError, match=said):
        ImageDataModule(write(tmp_path / "train.parquet"), stream=True, **options)


def test_what_can_not_be_streamed_is_refused(tmp_path):
    for source in ("digits", str(tmp_path), "no-such-thing"):
        with pytest.raises(UserError, match="can't be streamed"):
            ImageDataModule(source, stream=True)
    (tmp_path / "odd.parquet").write_bytes(b"PAR1 no parquet PAR1")
    with pytest.raises(UserError, match="can't be read as parquet"):
        ImageDataModule(str(tmp_path / "odd.parquet"), stream=True)


def test_a_file_that_goes_away_while_it_is_read_is_one_line(tmp_path):
    path = tmp_path / "train.parquet"
    stream = ImageDataModule(write(path), stream=True, val_fraction=0.0, num_workers=0, batch_size=8)
    stream.preprocessing = Preprocessing(image_size=(8, 8))
    path.unlink()
    with pytest.raises(UserError, match=r"train.parquet can't be read"):
        for batch in stream.train_dataloader():
            stream.on_before_batch_transfer(batch, 0)
