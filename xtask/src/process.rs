//! Runs other programs: shows the command, passes its output on, and turns a bad exit into an error.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::paths;

/// A command that runs in the workspace's root, without standard input.
pub fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.current_dir(paths::root()).stdin(Stdio::null());
    command
}

pub fn cargo() -> Command {
    command(paths::cargo())
}

/// Shows a command and runs it to its end with our own output.
pub fn run(command: &mut Command) -> Result<()> {
    show(command);
    let status = command.status().with_context(|| format!("cannot run {}", line(command)))?;
    if !status.success() {
        bail!("`{}` failed: {status}", line(command));
    }
    Ok(())
}

/// Like [`run`], but hands each line of the standard output to `look` as it passes.
pub fn run_watched(command: &mut Command, mut look: impl FnMut(&str)) -> Result<()> {
    show(command);
    let mut child = command.stdout(Stdio::piped()).spawn().with_context(|| format!("cannot run {}", line(command)))?;
    let output = child.stdout.take().context("the child has no standard output")?;
    let mut reader = BufReader::new(output);
    let mut bytes = Vec::new();
    while reader.read_until(b'\n', &mut bytes)? > 0 {
        std::io::stdout().write_all(&bytes)?;
        look(String::from_utf8_lossy(&bytes).trim_end());
        bytes.clear();
    }
    let status = child.wait()?;
    if !status.success() {
        bail!("`{}` failed: {status}", line(command));
    }
    Ok(())
}

/// The first line that a program prints when asked for its version; `None` if it is not installed.
pub fn version_of(program: &str, arguments: &[&str]) -> Result<Option<String>> {
    match command(program).args(arguments).output() {
        Ok(output) if output.status.success() => {
            Ok(String::from_utf8_lossy(&output.stdout).lines().next().map(str::to_owned))
        }
        Ok(_) => Ok(None),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot run {program}")),
    }
}

fn show(command: &Command) {
    println!("\n$ {}", line(command));
    // Nothing more can be done about a closed terminal.
    let _ = std::io::stdout().flush();
}

/// The command as a person would type it: installed programs by name, paths below the root made short.
fn line(command: &Command) -> String {
    let root = format!("{}/", paths::root().display());
    let program = Path::new(command.get_program());
    let program =
        if program.starts_with(&root) { program.as_os_str() } else { program.file_name().unwrap_or_default() };
    std::iter::once(program)
        .chain(command.get_args())
        .map(|part| part.to_string_lossy().replace(&root, ""))
        .map(|part| if part.contains(' ') { format!("'{part}'") } else { part })
        .collect::<Vec<_>>()
        .join(" ")
}
