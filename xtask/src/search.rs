//! `model` and `sim`: the two searches for what could go wrong, with more time than CI gives them.

use anyhow::Result;
use clap::Args;

use crate::process::{cargo, run};

#[derive(Args)]
pub struct ModelOptions {
    /// Only models and broken variants whose name contains this, e.g. a rule's id: `m3`
    #[arg(default_value = "")]
    name: String,
}

/// All models of the commit protocol, those with large bounds too, and each rule's broken variant.
pub fn model(options: &ModelOptions) -> Result<()> {
    // One after the other: each uses all cores, and the large ones have gigabytes of states.
    let arguments = ["test", "--locked", "-p", "perdure-sim", "--test", "models", "--"];
    run(cargo().args(arguments).arg(&options.name).args(["--include-ignored", "--nocapture", "--test-threads", "1"]))
}

#[derive(Args)]
pub struct SimOptions {
    /// How many seeds each kind of run gets
    #[arg(long, default_value_t = 1000)]
    seeds: u64,
    /// The first of them
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// What to show of a run, e.g. `perdure_shard=info,perdure_sim=debug`
    #[arg(long)]
    log: Option<String>,
    /// Only runs whose name contains this: `short`, `long`, `rough`
    #[arg(default_value = "")]
    name: String,
}

/// Seeded runs of shards over the simulated store; prints hours, faults and what they found.
pub fn sim(options: &SimOptions) -> Result<()> {
    let mut command = cargo();
    command.args(["test", "--locked", "-p", "perdure-sim", "--test", "simulation", "--"]).arg(&options.name);
    command.args(["--nocapture", "--test-threads", "1"]);
    command.env("SIM_SEEDS", options.seeds.to_string()).env("SIM_SEED", options.seed.to_string());
    if let Some(log) = &options.log {
        command.env("SIM_LOG", log);
    }
    run(&mut command)
}
