//! The official `temporal` CLI for the tests that run it: `TEMPORAL_CLI` names one, or Go builds it once, under `target/`.

use std::env;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

use crate::paths;
use crate::process::{command, run, version_of};

/// The latest version that `go install` takes: later ones replace modules in their go.mod.
const VERSION: &str = "v1.5.1";
const NAME: &str = "TEMPORAL_CLI";

/// `None`: there is no Go to build it with.
pub fn prepare() -> Result<Option<PathBuf>> {
    if let Some(given) = env::var_os(NAME) {
        return Ok(Some(given.into()));
    }
    let directory = paths::target().join("e2e/temporal-cli").join(VERSION);
    let binary = directory.join("temporal");
    if binary.exists() {
        return Ok(Some(binary));
    }
    if version_of("go", &["version"])?.is_none() {
        return Ok(None);
    }
    println!("\nbuilding the temporal CLI {VERSION}, once");
    let package = format!("github.com/temporalio/cli/cmd/temporal@{VERSION}");
    run(command("go").args(["install", &package]).env("GOBIN", &directory).current_dir(paths::root()))
        .context("cannot build the temporal CLI")?;
    ensure!(binary.exists(), "go install made no {}", binary.display());
    Ok(Some(binary))
}
