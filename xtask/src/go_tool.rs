//! Official programs that tests run: an environment variable names one, or Go builds it once, under `target/`.

use std::env;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

use crate::paths;
use crate::process::{command, run, version_of};

pub struct GoTool {
    pub title: &'static str,
    /// Names the program, for us and for the tests.
    pub variable: &'static str,
    package: &'static str,
    version: &'static str,
    /// What `go install` calls it.
    binary: &'static str,
    /// Below `target/e2e`.
    directory: &'static str,
}

/// The latest version that `go install` takes: later ones replace modules in their go.mod.
pub const TEMPORAL_CLI: GoTool = GoTool {
    title: "the temporal CLI",
    variable: "TEMPORAL_CLI",
    package: "github.com/temporalio/cli/cmd/temporal",
    version: "v1.5.1",
    binary: "temporal",
    directory: "temporal-cli",
};

/// With the pages in it.
pub const TEMPORAL_UI: GoTool = GoTool {
    title: "the Temporal Web UI",
    variable: "TEMPORAL_UI",
    package: "github.com/temporalio/ui-server/v2/cmd/server",
    version: "v2.54.1",
    binary: "server",
    directory: "temporal-ui",
};

impl GoTool {
    /// `None`: there is no Go to build it with.
    pub fn prepare(&self) -> Result<Option<PathBuf>> {
        if let Some(given) = env::var_os(self.variable) {
            return Ok(Some(given.into()));
        }
        let directory = paths::target().join("e2e").join(self.directory).join(self.version);
        let binary = directory.join(self.binary);
        if binary.exists() {
            return Ok(Some(binary));
        }
        if version_of("go", &["version"])?.is_none() {
            return Ok(None);
        }
        println!("\nbuilding {} {}, once", self.title, self.version);
        let package = format!("{}@{}", self.package, self.version);
        run(command("go").args(["install", &package]).env("GOBIN", &directory).current_dir(paths::root()))
            .with_context(|| format!("cannot build {}", self.title))?;
        ensure!(binary.exists(), "go install made no {}", binary.display());
        Ok(Some(binary))
    }
}
