//! `check` and `fix`: formatting, lints, the repository's own rules, licences.

use anyhow::Result;

use crate::process::{cargo, command, run, version_of};
use crate::{paths, tidy};

pub fn check() -> Result<()> {
    run(cargo().args(["fmt", "--all", "--check"]))?;
    tidy::run()?;
    run(cargo().args(["clippy", "--locked", "--workspace", "--all-targets", "--", "--deny", "warnings"]))?;
    if version_of("cargo-deny", &["--version"])?.is_some() {
        run(cargo().args(["deny", "--all-features", "check", "bans", "licenses", "sources"]))?;
    } else {
        println!("\ncargo-deny is not installed: licences and sources of dependencies were not checked");
    }
    if version_of("go", &["version"])?.is_some() {
        run(command("go").args(["vet", "./..."]).current_dir(paths::root().join("e2e/go")))?;
    }
    Ok(())
}

pub fn fix() -> Result<()> {
    run(cargo().args(["clippy", "--workspace", "--all-targets", "--fix", "--allow-dirty", "--allow-staged"]))?;
    run(cargo().args(["fmt", "--all"]))?;
    tidy::fix()
}
