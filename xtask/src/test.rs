//! `cargo xtask test`: unit and property tests, then the official SDKs against the built server.
//!
//! A failing suite does not stop the others. The last line counts the tests of all of them.

use std::path::Path;

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};

use crate::process::{self, cargo, command, version_of};
use crate::server::{Profile, Server, build};
use crate::{paths, venv};

#[derive(Args, Default)]
pub struct Options {
    /// Run one suite only
    #[arg(long, value_enum)]
    only: Option<Suite>,
    /// Run the end-to-end tests against an optimized server
    #[arg(long)]
    release: bool,
    /// More arguments for the one suite's runner, e.g. `--only python -- -k update`
    #[arg(last = true, requires = "only")]
    arguments: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Suite {
    /// Unit and property tests of all crates
    Unit,
    /// The official Python SDK, with kills of worker and server
    Python,
    /// The official Go SDK
    Go,
}

impl Suite {
    const ALL: [Self; 3] = [Self::Unit, Self::Python, Self::Go];

    fn name(self) -> &'static str {
        match self {
            Self::Unit => "unit and property tests",
            Self::Python => "end to end, Python SDK",
            Self::Go => "end to end, Go SDK",
        }
    }

    fn run(self, options: &Options, tally: &mut Tally) -> Result<()> {
        match self {
            Self::Unit => unit(options, tally),
            Self::Python => python(options, tally),
            Self::Go => go(options, tally),
        }
    }
}

pub fn run(options: &Options) -> Result<()> {
    let mut total = Tally::default();
    let mut summary = Vec::new();
    let mut failed = Vec::new();
    for suite in Suite::ALL.into_iter().filter(|suite| options.only.is_none_or(|only| only == *suite)) {
        let mut tally = Tally::default();
        let outcome = suite.run(options, &mut tally);
        if let Err(error) = &outcome {
            eprintln!("\nerror: {}: {error:#}", suite.name());
            failed.push(suite.name());
        }
        summary.extend(tally.closing.iter().map(|line| format!("  {line}")));
        summary.push(format!("{}: {tally}{}", suite.name(), if outcome.is_err() { " — FAILED" } else { "" }));
        total.add(&tally);
    }
    println!("\n{}\n\n{total}", summary.join("\n"));
    if !failed.is_empty() {
        bail!("failed: {}", failed.join("; "));
    }
    Ok(())
}

fn unit(options: &Options, tally: &mut Tally) -> Result<()> {
    let mut tests = cargo();
    tests.args(["test", "--locked", "--no-fail-fast"]);
    // With `--workspace`, cargo would not heed a `--package` of the arguments.
    if options.arguments.is_empty() {
        tests.arg("--workspace");
    }
    tests.args(&options.arguments);
    process::run_watched(&mut tests, |line| tally.read_cargo(line))
}

fn python(options: &Options, tally: &mut Tally) -> Result<()> {
    let suite = paths::root().join("e2e/python");
    let binary = server_binary(options)?;
    let python = venv::prepare(&paths::target().join("e2e/venv"), &suite.join("requirements.txt"))?;
    process::run_watched(
        command(python)
            .args(["-m", "pytest", "-p", "no:cacheprovider"])
            .args(&options.arguments)
            .env("PERDURE_BIN", binary)
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .env("PYTHONUNBUFFERED", "1")
            .env_remove("PERDURE_ADDRESS")
            .env_remove("PERDURE_COMMAND")
            .current_dir(&suite),
        |line| tally.read_pytest(line),
    )
}

fn go(options: &Options, tally: &mut Tally) -> Result<()> {
    if version_of("go", &["version"])?.is_none() {
        println!("\nGo is not installed: the Go SDK's tests were skipped");
        tally.closing.push("skipped: Go is not installed".to_owned());
        return Ok(());
    }
    let binary = server_binary(options)?;
    let server = Server::start(&binary, &paths::target().join("e2e/go-server"), &[])?;
    let outcome = go_suite(&server, &paths::root().join("e2e/go"), options, tally);
    outcome.and(server.stop())
}

fn go_suite(server: &Server, suite: &Path, options: &Options, tally: &mut Tally) -> Result<()> {
    process::run_watched(
        command("go")
            .args(["test", "-count=1", "-v", "-timeout=10m", "./..."])
            .args(&options.arguments)
            .env("PERDURE_ADDRESS", server.address.to_string())
            .env("PERDURE_STRICT", "1")
            .current_dir(suite),
        |line| tally.read_go(line),
    )
}

fn server_binary(options: &Options) -> Result<std::path::PathBuf> {
    let profile = if options.release { Profile::Release } else { Profile::Dev };
    Ok(build(&["perdure"], profile)?.join("perdure"))
}

/// What the runners said.
#[derive(Default)]
struct Tally {
    passed: u32,
    failed: u32,
    skipped: u32,
    /// Closing lines to show again at the end.
    closing: Vec<String>,
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

impl Tally {
    fn add(&mut self, other: &Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }

    /// `test result: ok. 12 passed; 0 failed; 1 ignored; …`, one a test binary.
    fn read_cargo(&mut self, line: &str) {
        if let Some(result) = line.strip_prefix("test result: ") {
            self.count(result, &[';', '.']);
        }
    }

    /// `==== 1 failed, 30 passed, 2 skipped in 61.20s (0:01:01) ====`
    fn read_pytest(&mut self, line: &str) {
        let inner = line.trim_matches('=').trim();
        let counts = inner.split(" in ").next().unwrap_or_default();
        if line.starts_with("==") && inner.contains(" in ") && self.count(counts, &[',']) {
            self.closing.push(inner.to_owned());
        }
    }

    /// `--- PASS: TestName (0.10s)` for a test (indented for a part of one), `ok  <package> 8.1s` for a package.
    fn read_go(&mut self, line: &str) {
        match line {
            _ if line.starts_with("--- PASS: ") => self.passed += 1,
            _ if line.starts_with("--- FAIL: ") => self.failed += 1,
            _ if line.starts_with("--- SKIP: ") => self.skipped += 1,
            _ if line.starts_with("ok  \t") || line.starts_with("FAIL\t") => self.closing.push(line.to_owned()),
            _ => {}
        }
    }

    /// Adds up `<number> <word>` parts; whether there was any that it knows.
    fn count(&mut self, text: &str, separators: &[char]) -> bool {
        let mut any = false;
        for part in text.split(separators) {
            let mut words = part.split_whitespace();
            let (Some(number), Some(word)) = (words.next().and_then(|n| n.parse::<u32>().ok()), words.next()) else {
                continue;
            };
            let counter = match word {
                "passed" | "xpassed" => &mut self.passed,
                "failed" | "error" | "errors" => &mut self.failed,
                "skipped" | "ignored" | "xfailed" => &mut self.skipped,
                _ => continue,
            };
            *counter += number;
            any = true;
        }
        any
    }
}

#[cfg(test)]
mod tests {
    use super::Tally;

    #[test]
    fn counts_what_each_runner_prints() {
        let mut tally = Tally::default();
        tally.read_cargo(
            "test result: ok. 12 passed; 1 failed; 2 ignored; 0 measured; 7 filtered out; finished in 0.1s",
        );
        tally.read_cargo("running 12 tests");
        assert_eq!(tally.to_string(), "12 passed, 1 failed, 2 skipped");

        tally.read_pytest("============================= test session starts ==============================");
        tally.read_pytest("FAILED tests/test_a.py::test - assert 1 passed in 2");
        tally.read_pytest("======= 1 failed, 30 passed, 2 skipped, 1 error in 61.20s (0:01:01) =======");
        assert_eq!(tally.to_string(), "42 passed, 3 failed, 4 skipped");

        tally.read_go("=== RUN   TestA");
        tally.read_go("    --- PASS: TestA/part (0.00s)");
        tally.read_go("--- PASS: TestA (0.00s)");
        tally.read_go("--- FAIL: TestB (0.00s)");
        tally.read_go("ok  \tperdure/e2e\t1.2s");
        assert_eq!(tally.to_string(), "43 passed, 4 failed, 4 skipped");
        assert_eq!(
            tally.closing,
            ["1 failed, 30 passed, 2 skipped, 1 error in 61.20s (0:01:01)", "ok  \tperdure/e2e\t1.2s"]
        );
    }
}
