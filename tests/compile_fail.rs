//! What elsewhere is a comment ("the caller must ...") is a compile error here: each program under `compile-fail` breaks one
//! such rule, and its `.stderr` says how the compiler puts it. The messages are those of the toolchain that the project
//! is developed with; `TRYBUILD=overwrite` writes them anew.
#![cfg(not(loom))]

#[test]
fn a_program_that_breaks_a_rule_of_the_protocol_does_not_compile() {
    trybuild::TestCases::new().compile_fail("tests/compile-fail/*.rs");
}
