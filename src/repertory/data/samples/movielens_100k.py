"""MovieLens 100k: 943 people who rated 1,682 films (GroupLens)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from repertory.data.interactions import Interactions, interactions_of, read_atomic
from repertory.data.samples import Package, Sample
from repertory.errors import DataError


def build(packages: dict[str, Path], at_least: float = 4.0, users: int = 0) -> Interactions:
    """Who liked which film, with title, year and genres of the films, and age, gender and occupation of the people.

    Args:
        at_least: the lowest rating that counts as an interaction, 1 to 5.
        users: only the first so many; 0 takes all.
    """
    folder = packages[MOVIELENS.name] / "recbole/dataset_example/ml-100k"
    whole = read_atomic(folder, at_least)
    if users < 0:
        raise DataError(f"users={users}: a positive number, or 0 for all")
    about = whole.columns.to_pandas()
    films = about[about["side"] == "item"]
    titles = films["title"].to_numpy(dtype=object)
    years = films["release_year"].to_numpy(dtype=object)
    genres = films["class"].to_numpy(dtype=object)
    decades = [f"{str(year)[:3]}0s" if str(year)[:4].isdigit() else "" for year in years]
    texts = [
        " ".join(str(part) for part in parts if part and part == part)
        for parts in zip(titles, genres, decades, strict=True)
    ]
    items = pd.DataFrame({"id": whole.items, "title": titles, "year": years, "genres": genres, "text": texts})
    people = about[about["side"] == "user"][["age", "gender", "occupation"]]
    people = people.assign(id=whole.users, title=[f"person {name}" for name in whole.users])
    if users:
        people = people.iloc[np.argsort(whole.users.astype(int), kind="stable")[:users]]
    table = whole.table.columns.to_pandas()
    table = table[table["user"].isin(set(people["id"]))]
    if users:
        items = items[items["id"].isin(set(table["item"]))]
    return interactions_of(table, folder.name, users=people, items=items)


MOVIELENS = Package(
    name="recbole",
    version="1.2.1",
    files=("recbole/dataset_example/ml-100k/*",),
    sha256=("9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407",),
    licence="MIT (the package); the data are of GroupLens: research use, no redistribution, no endorsement implied",
)

SAMPLE = Sample(
    name="movielens-100k",
    kind="interactions",
    about="55,375 likes (ratings of 4 and 5) of 1,682 films by 943 people, with titles and genres",
    licence=(
        "MovieLens (Harper and Konstan 2015, doi 10.1145/2827872), whose terms apply: research use with citation, no "
        "redistribution, no commercial use without permission; taken from the package recbole (MIT)"
    ),
    build=build,
    packages=(MOVIELENS,),
)
