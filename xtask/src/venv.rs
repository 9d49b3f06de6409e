//! Python virtual environments under `target/`, filled from a requirements file.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::process::{command, run, version_of};

/// The oldest Python that the official SDK supports.
const MINIMUM: (u32, u32) = (3, 10);

/// Makes the environment in `directory` have what `requirements` lists; returns its interpreter. Costs nothing when it does
/// already: the environment keeps a copy of the file it was filled from, written last.
pub fn prepare(directory: &Path, requirements: &Path) -> Result<PathBuf> {
    let wanted = fs::read_to_string(requirements).with_context(|| format!("cannot read {}", requirements.display()))?;
    let python = directory.join("bin/python");
    let stamp = directory.join("requirements.installed");
    if python.exists() && fs::read_to_string(&stamp).is_ok_and(|installed| installed == wanted) {
        return Ok(python);
    }
    require_python()?;
    fs::create_dir_all(directory)?;
    run(command("python3").args(["-m", "venv", "--clear"]).arg(directory))
        .context("cannot make a virtual environment (on Debian: apt-get install python3-venv)")?;
    run(command(&python)
        .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--requirement"])
        .arg(requirements))?;
    fs::write(&stamp, wanted)?;
    Ok(python)
}

fn require_python() -> Result<()> {
    let Some(version) = version_of("python3", &["--version"])? else {
        bail!("python3 is not installed: Python {}.{} or newer is needed", MINIMUM.0, MINIMUM.1);
    };
    let mut numbers = version.trim_start_matches("Python ").split('.').map_while(|part| part.parse::<u32>().ok());
    match (numbers.next(), numbers.next()) {
        (Some(major), Some(minor)) if (major, minor) >= MINIMUM => Ok(()),
        _ => bail!("python3 is {version}: {}.{} or newer is needed", MINIMUM.0, MINIMUM.1),
    }
}
