//! What tables take of memory, against its goals.

use crate::machine::events::Memory;

/// Tables below the root of a GiB full of pages: one for each 2 MiB, and one above.
const TABLES_PER_GIB: u64 = 513;
/// What may be kept beside each.
const METADATA_BYTES: u64 = 64;
/// What may be left when all that was touched has been unmapped: Linux's PT_RECLAIM ends its loop over 50 GiB at 248 KB.
const LEFT_BYTES: u64 = 260_000;

/// A line for each figure.
pub(super) fn lines(memory: &Memory) -> Vec<String> {
    let Memory { tables_per_gib, metadata_bytes, touched_bytes, peak_table_bytes, table_bytes } = memory;
    vec![
        format!("tables of a GiB of pages: {tables_per_gib} and {metadata_bytes} bytes beside each"),
        format!(
            "touched and unmapped {} GiB: {table_bytes} bytes of tables at the end, {peak_table_bytes} at most",
            touched_bytes >> 30
        ),
    ]
}

/// What is more than it may be, a line each.
pub(super) fn too_much(memory: &Memory) -> Vec<String> {
    [
        ("tables per GiB", memory.tables_per_gib, TABLES_PER_GIB),
        ("bytes beside a table", memory.metadata_bytes, METADATA_BYTES),
        ("bytes of tables left", memory.table_bytes, LEFT_BYTES),
    ]
    .into_iter()
    .filter(|(_, is, goal)| is > goal)
    .map(|(what, is, goal)| format!("{is} {what}, and not {goal}"))
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_figure_has_its_limit() {
        let good = Memory {
            tables_per_gib: 513,
            metadata_bytes: 64,
            touched_bytes: 50 << 30,
            peak_table_bytes: 400_000,
            table_bytes: 260_000,
        };
        assert!(too_much(&good).is_empty());
        let bad = Memory { tables_per_gib: 514, metadata_bytes: 65, table_bytes: 260_001, ..good };
        assert_eq!(too_much(&bad).len(), 3);
        assert_eq!(lines(&bad).len(), 2);
    }
}
