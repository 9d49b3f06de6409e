//! `cargo xtask demo`: an order workflow that survives `kill -9` of its worker and of its server.

use anyhow::Result;
use clap::Args;

use crate::process::{self, command};
use crate::server::{Profile, build, free_port};
use crate::{paths, venv};

#[derive(Args)]
pub struct Options {
    /// The port of the demo's server; 0 takes a free one
    #[arg(long, default_value_t = 0)]
    port: u16,
}

pub fn run(options: &Options) -> Result<()> {
    let example = paths::root().join("examples/order");
    let directory = paths::target().join("demo");
    let python = venv::prepare(&directory.join("venv"), &example.join("requirements.txt"))?;
    let server = build(&["perdure"], Profile::Dev)?.join("perdure");

    let work = directory.join("run");
    if work.exists() {
        std::fs::remove_dir_all(&work)?;
    }
    let port = if options.port == 0 { free_port()? } else { options.port };
    let server_command = format!(
        "'{}' dev --ip 127.0.0.1 --port {port} --db-filename '{}'",
        server.display(),
        work.join("data").display()
    );
    process::run(
        command(python)
            .arg(example.join("demo.py"))
            .args(["--address", &format!("127.0.0.1:{port}"), "--workdir"])
            .arg(&work)
            .args(["--server-cmd", &server_command]),
    )
}
