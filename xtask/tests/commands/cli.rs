//! What the commands say: help, and errors that need no world. `TRYCMD=overwrite` rewrites the files.

#[test]
fn what_is_said_is_what_is_written_down() {
    let cases = trycmd::TestCases::new();
    cases.env("NO_COLOR", "1").case("tests/commands/cli/*.trycmd");
}
