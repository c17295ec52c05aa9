//! An embedder's calls: goals per page, and what others take per page (KVM: Linux 6.1, to delete a slot; peers: the best of
//! page_table_multiarch 0.6.2, aarch64-paging 0.12.3 and page-table-generic). The floors are a three-level walk with a table's lock, a
//! recheck of the parent and a DSB; and a loop of bare stores.

use super::goals::{Group, Line, Metric, Part};

/// The group.
pub(super) const GROUP: Group = Group {
    name: "library",
    parts: &[Part::alone("library")],
    lines: &[
        Line::of(&["map_page"]).goals(&[("pages", 57.0)]).peers(102.0).floor(44.0),
        Line::of(&["unmap_page"]).peers(54.0),
        Line::of(&["query"]).goals(&[("pages", 30.0)]).peers(42.0),
        Line::of(&["protect_page"]),
        Line::of(&["map_range"]).modes(&["pages"]).goals(&[("pages", 6.0)]).peers(45.0).floor(4.0),
        Line::of(&["map_range"]).modes(&["blocks"]),
        Line::of(&["unmap_range"])
            .modes(&["by_region", "one_by_one"])
            .goals(&[("by_region", 8.0), ("one_by_one", 16.0)])
            .kvm(256.0)
            .peers(53.0)
            .floor(4.0),
        Line::of(&["unmap_range"]).modes(&["blocks"]),
        Line::of(&["protect_range"]).modes(&["pages"]).floor(4.0),
        Line::of(&["protect_range"]).modes(&["blocks"]),
        Line::of(&["split_block"]),
        Line::of(&["unmap_1gib"]).metric(Metric::Tlbis).goals(&[("pages", 4.0)]).peers(262_144.0),
        Line::of(&["write_protect_1gib"]).metric(Metric::Tlbis).goals(&[("pages", 4.0)]).peers(262_144.0),
        Line::of(&["unmap_1gib"]),
        Line::of(&["write_protect_1gib"]),
    ],
    equal: &[],
};
