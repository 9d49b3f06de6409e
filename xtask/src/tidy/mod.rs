//! The repository's own rules. Each rule is a pure function from file contents to complaints.

mod edges;
mod features;
mod lengths;
mod links;
mod rules;

use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use crate::paths;
use crate::process::command;

/// The files of the source tree that git tracks or would track, relative to the root.
pub struct Tree {
    files: Vec<PathBuf>,
}

impl Tree {
    fn read() -> Result<Self> {
        let output = command("git")
            .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
            .output()
            .context("cannot run git")?;
        if !output.status.success() {
            bail!("git ls-files: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        let mut files: Vec<PathBuf> = String::from_utf8(output.stdout)?
            .split_terminator('\0')
            .map(PathBuf::from)
            .filter(|file| paths::root().join(file).is_file())
            .collect();
        files.sort();
        files.dedup();
        Ok(Self { files })
    }

    /// The files with one of these extensions, with their text.
    fn texts(&self, extensions: &[&str]) -> Result<Vec<(PathBuf, String)>> {
        self.files
            .iter()
            .filter(|file| file.extension().is_some_and(|found| extensions.iter().any(|wanted| found == *wanted)))
            .map(|file| {
                let text = std::fs::read_to_string(paths::root().join(file))
                    .with_context(|| format!("cannot read {}", file.display()))?;
                Ok((file.clone(), text))
            })
            .collect()
    }
}

pub fn run() -> Result<()> {
    let tree = Tree::read()?;
    let mut complaints = Vec::new();
    complaints.extend(edges::check(&tree.texts(&["toml"])?));
    complaints.extend(lengths::check(&tree.texts(lengths::EXTENSIONS)?));
    complaints.extend(links::check(&tree.texts(&["md"])?, &tree.files));
    complaints.extend(rules::check(&read("ARCHITECTURE.md")?, &tree.texts(&["rs"])?));
    complaints.extend(features::check(&read("README.md")?, &read(features::PAGE)?, &read(features::SOURCE)?));
    for complaint in &complaints {
        eprintln!("tidy: {complaint}");
    }
    if !complaints.is_empty() {
        bail!("tidy found {} problems", complaints.len());
    }
    println!("\ntidy: {} files, no problem", tree.files.len());
    Ok(())
}

/// Brings the generated parts of documents up to date.
pub fn fix() -> Result<()> {
    let source = read(features::SOURCE)?;
    write("README.md", &features::rewrite_readme(&read("README.md")?, &source)?)?;
    write(features::PAGE, &features::rewrite_page(&read(features::PAGE)?, &source)?)
}

fn write(file: &str, text: &str) -> Result<()> {
    std::fs::write(paths::root().join(file), text).with_context(|| format!("cannot write {file}"))
}

fn read(file: &str) -> Result<String> {
    std::fs::read_to_string(paths::root().join(file)).with_context(|| format!("cannot read {file}"))
}
