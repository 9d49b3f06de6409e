//! What a workflow with one activity costs in the core. Run by hand, optimised: `cargo test --release --test cost -- --ignored --nocapture`.

mod common;

use std::time::Instant;

use common::*;
use perdure_proto::perdure::node::v1::TaskKind;

#[test]
#[ignore = "a measurement"]
fn one_activity() {
    const RUNS: u32 = 2_000;
    let begin = Instant::now();
    for _ in 0..RUNS {
        let mut chain = TestChain::unchecked();
        chain.start();
        chain.work(vec![commands::activity("a")]);
        let activity = chain.poll_activity();
        chain.complete_activity(&activity, "done");
        chain.work(vec![commands::complete("done")]);
        assert_eq!(chain.offered(TaskKind::Workflow), 0);
    }
    println!("{:.1} µs a workflow", begin.elapsed().as_secs_f64() * 1e6 / f64::from(RUNS));
}
