"""One-hot columns of the census, right and as a public demo of the paper has them on rows it did not fit them on."""

import numpy as np
import pyarrow as pa

AS_ONE = "one_hot"
"""The column that holds the names of a row's one-hot columns."""
ONE_HOT = (
    *("class_worker", "det_ind_code", "det_occ_code", "hs_college", "major_ind_code", "major_occ_code", "race"),
    *("hisp_origin", "sex", "union_member", "unemp_reason", "full_or_part_emp", "tax_filer_stat", "region_prev_res"),
    *("state_prev_res", "det_hh_fam_stat", "det_hh_summ", "mig_chg_msa", "mig_chg_reg", "mig_move_reg", "mig_same"),
    *("mig_prev_sunbelt", "fam_under_18", "country_father", "country_mother", "country_self", "citizenship"),
    "vet_question",
)
"""What the demo makes one-hot, in its order, but for education, which the protocol takes out."""
ABSENT = ("det_hh_fam_stat", "Grandchild <18 ever marr not in subfamily")
"""The only value of the training file that the test file does not have."""


class OneHot:
    """The columns that the training rows have: each value of each of ``ONE_HOT``, sorted."""

    def __init__(self, train: pa.Table) -> None:
        self.names = [f"{column}={value}" for column in ONE_HOT for value in _sorted(train, column)]
        self.absent = self.names.index("=".join(ABSENT))

    def added(self, table: pa.Table) -> pa.Table:
        """The table with ``AS_ONE``: of each row the names of the columns that are 1, joined by "|"."""
        return self._added(table, self.names)

    def shifted(self, table: pa.Table) -> pa.Table:
        """The same where columns were made of this table alone, and the one it lacks was appended as the last.

        Where the network expects column i, from the absent one on, it then finds column i + 1.
        """
        before, after = self.names[: self.absent], self.names[self.absent + 1 :]
        found = [*before, *after, self.names[self.absent]]
        return self._added(table, dict(zip(found, self.names, strict=True)))

    def _added(self, table: pa.Table, read_as: "list[str] | dict[str, str]") -> pa.Table:
        named = read_as if isinstance(read_as, dict) else dict(zip(read_as, read_as, strict=True))
        columns = []
        for column in ONE_HOT:
            values = table[column].cast(pa.string()).fill_null("?").combine_chunks().dictionary_encode()
            names = [named.get(f"{column}={value}", "") for value in values.dictionary.to_pylist()]
            columns.append(np.array(names, dtype=object)[values.indices.to_numpy()])
        joined = ["|".join(filter(None, row)) for row in zip(*columns, strict=True)]
        return table.append_column(AS_ONE, pa.array(joined, pa.string()))


def _sorted(table: pa.Table, column: str) -> list[str]:
    values = table[column].unique().to_pylist()
    return [str(value) for value in sorted({"?" if value is None else value for value in values})]
