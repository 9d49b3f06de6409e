//! The load under which damage is done: a `perdure-load chaos` that is told what happens.

use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};

pub struct Load {
    process: Child,
    begun: Instant,
}

impl Load {
    /// Begins at once; `arguments` are those of `perdure-load chaos`.
    pub fn start(binary: &Path, arguments: &[String]) -> Result<Self> {
        let process = Command::new(binary)
            .arg("chaos")
            .args(arguments)
            .stdin(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot run {}", binary.display()))?;
        Ok(Self { process, begun: Instant::now() })
    }

    /// Says what happens now; the first word is its kind.
    pub fn tell(&mut self, what: &str) -> Result<()> {
        println!("{:6.1} s: {what}", self.begun.elapsed().as_secs_f64());
        let input = self.process.stdin.as_mut().context("the load has ended")?;
        writeln!(input, "{what}").context("the load has ended")
    }

    /// Ends the load; an error if it found that the servers did not keep their word.
    pub fn finish(mut self) -> Result<()> {
        drop(self.process.stdin.take());
        let status = self.process.wait()?;
        if !status.success() {
            bail!("perdure-load: {status}");
        }
        Ok(())
    }
}

impl Drop for Load {
    /// For a run that is given up.
    fn drop(&mut self) {
        if matches!(self.process.try_wait(), Ok(None)) {
            let _ = self.process.kill();
            let _ = self.process.wait();
        }
    }
}
