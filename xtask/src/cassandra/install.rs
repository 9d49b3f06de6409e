//! Gets Cassandra by Maven, and finds a Java that it runs on.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::paths;
use crate::process::{command, run, version_of};

/// What Cassandra 5.0 runs on, and `jvm.options` is written for.
const JAVA: u32 = 17;

/// The directory with Cassandra's jars, filled if need be.
pub fn library(home: &Path) -> Result<PathBuf> {
    let pom = paths::root().join("deploy/cassandra/pom.xml");
    let wanted = fs::read_to_string(&pom).with_context(|| format!("cannot read {}", pom.display()))?;
    let library = home.join("lib");
    let stamp = home.join("pom.installed");
    if fs::read_to_string(&stamp).is_ok_and(|installed| installed == wanted) {
        return Ok(library);
    }
    if version_of("mvn", &["--version"])?.is_none() {
        bail!("Maven is not installed, which fetches Cassandra (on Debian: apt-get install maven)");
    }
    // Another version's jars must not stay beside the new ones.
    if library.exists() {
        fs::remove_dir_all(&library)?;
    }
    run(command("mvn")
        .args(["--quiet", "--batch-mode", "--file"])
        .arg(&pom)
        .args(["dependency:copy-dependencies", "-DincludeScope=runtime"])
        .arg(format!("-DoutputDirectory={}", library.display())))?;
    fs::write(&stamp, wanted)?;
    Ok(library)
}

/// A Java of the right version: of `JAVA_HOME`, the one on the path, or one where Linux distributions put it.
pub fn java() -> Result<PathBuf> {
    let home = env::var_os("JAVA_HOME").map(|home| Path::new(&home).join("bin/java"));
    let installed = fs::read_dir("/usr/lib/jvm").into_iter().flatten().flatten();
    let installed = installed.map(|entry| entry.path().join("bin/java")).filter(|java| java.exists());
    let mut seen = Vec::new();
    for java in home.into_iter().chain([PathBuf::from("java")]).chain(installed) {
        match major_version(&java)? {
            Some(JAVA) => return Ok(java),
            Some(other) => seen.push(format!("{} is {other}", java.display())),
            None => {}
        }
    }
    let seen = if seen.is_empty() { "none was found".to_owned() } else { seen.join(", ") };
    bail!("Java {JAVA} is needed, and {seen} (on Debian: apt-get install openjdk-{JAVA}-jre-headless)")
}

fn major_version(java: &Path) -> Result<Option<u32>> {
    let line = version_of(&java.to_string_lossy(), &["--version"])?;
    Ok(line.as_deref().and_then(parse_major))
}

/// `openjdk 17.0.15 2025-04-15`
fn parse_major(line: &str) -> Option<u32> {
    line.split_whitespace().nth(1)?.split(['.', '-', '+']).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::parse_major;

    #[test]
    fn reads_the_version_of_java() {
        assert_eq!(parse_major("openjdk 17.0.15 2025-04-15"), Some(17));
        assert_eq!(parse_major("java 21 2023-09-19 LTS"), Some(21));
        assert_eq!(parse_major("openjdk 24-ea 2025-03-18"), Some(24));
        assert_eq!(parse_major("something else"), None);
    }
}
