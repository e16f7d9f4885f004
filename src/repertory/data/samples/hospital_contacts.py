"""Face-to-face contacts on a hospital ward: 75 patients, nurses, doctors and others over five days (SocioPatterns)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from repertory.data.events import Events, events_of
from repertory.data.samples import Package, Sample
from repertory.errors import DataError

ROLES = {"PAT": "patient", "NUR": "nurse", "MED": "doctor", "ADM": "administration"}
RESOLUTION = 20.0
"""Seconds between records: one each while two people face each other."""


def build(packages: dict[str, Path], hours: float = 0.0) -> Events:
    """The starts of contacts, in hours since the first; label: what each person does.

    Args:
        hours: only contacts that begin in the first so many; 0 takes all 97.
    """
    file = packages[CONTACTS.name] / "tnetwork/dyn_graph/toy_data/Contacts_Hospital.csv"
    records = pd.read_csv(file, sep="\t", names=["t", "i", "j", "role_i", "role_j"], dtype=str)
    ids = np.concatenate([records["i"], records["j"]])
    about = pd.DataFrame({"id": ids, "role": np.concatenate([records["role_i"], records["role_j"]])})
    records["time"] = records["t"].astype(np.float64)
    if hours < 0:
        raise DataError(f"hours={hours:g}: a positive number, or 0 for all")
    if hours:
        records = records[records["time"] < records["time"].min() + 3600 * hours]
        about = about[about["id"].isin(set(records["i"]) | set(records["j"]))]
    contacts = events_of(
        records[["i", "j", "time"]],
        file.name,
        about=about.drop_duplicates("id").replace({"role": ROLES}),
        gap=RESOLUTION,
    )
    table = contacts.table
    since = np.round((table.times - table.times.min()) / 3600, 6)
    return Events.of(contacts.nodes, table.pairs, since, contacts.columns, {"label": ("role",)})


CONTACTS = Package(
    name="tnetwork",
    version="1.2",
    files=("tnetwork/dyn_graph/toy_data/Contacts_Hospital.csv",),
    sha256=("95086fbc79c64db56df099e945f0750c9cf2f2f1ecaae2b801bb369675a2f26e",),
    licence="BSD-2-Clause (the package); the data are of SocioPatterns, whose terms apply",
)

SAMPLE = Sample(
    name="hospital-contacts",
    kind="events",
    about="14,037 face-to-face contacts of 75 people on a hospital ward, with their roles",
    licence="SocioPatterns (Vanhems et al. 2013), whose terms apply; taken from the package tnetwork (BSD-2-Clause)",
    build=build,
    packages=(CONTACTS,),
)
