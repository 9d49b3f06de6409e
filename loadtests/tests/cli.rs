//! The program explains itself. (Its tests being there, `cargo test` builds it: other tests run it.)

use std::process::Command;

#[test]
fn chaos_says_what_it_takes() {
    let output = Command::new(env!("CARGO_BIN_EXE_perdure-load")).args(["chaos", "--help"]).output().expect("runs");
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8_lossy(&output.stdout);
    // What `cargo xtask chaos` gives it.
    for option in
        ["--address", "--journal", "--in-flight", "--workers", "--activity-timeout-seconds", "--no-failed-call"]
    {
        assert!(text.contains(option), "{option} is not in\n{text}");
    }
}
