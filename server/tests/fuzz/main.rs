//! Requests of all kinds of nonsense against the real server. It never panics, never fails inside, and a workflow in
//! another namespace stays as it was, though the nonsense has damaged copies of its task tokens.
//!
//! `PERDURE_FUZZ_SEED` repeats a run's requests (they race each other, so what the server makes of them may differ),
//! `PERDURE_FUZZ_SECONDS` makes it longer.

#![allow(clippy::unwrap_used)] // Tests may unwrap.
#![cfg(unix)]

#[path = "../common/mod.rs"]
mod common;
mod control;
mod generate;
mod pool;
mod wire;

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use perdure_frontend::{OPERATOR_IMPLEMENTED, OPERATOR_UNIMPLEMENTED, WORKFLOW_IMPLEMENTED, WORKFLOW_UNIMPLEMENTED};
use perdure_proto::TEMPORAL_DESCRIPTORS;
use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, MethodDescriptor};
use tempfile::tempdir;
use tonic::{Code, Status};

use crate::{common::Server, control::Control, generate::Generator, pool::Pool, wire::Wire};

const CALLERS: u64 = 16;
const DEFAULT_SECONDS: u64 = 12;
/// Name, RPCs that are built, RPCs that are not.
const SERVICES: [(&str, &[&str], &[&str]); 2] = [
    ("temporal.api.workflowservice.v1.WorkflowService", WORKFLOW_IMPLEMENTED, WORKFLOW_UNIMPLEMENTED),
    ("temporal.api.operatorservice.v1.OperatorService", OPERATOR_IMPLEMENTED, OPERATOR_UNIMPLEMENTED),
];

struct Method {
    path: String,
    descriptor: MethodDescriptor,
    is_built: bool,
}

fn methods() -> Vec<Method> {
    let descriptors = DescriptorPool::decode(TEMPORAL_DESCRIPTORS).unwrap();
    let mut methods = Vec::new();
    for (service, built, open) in SERVICES {
        let descriptor = descriptors.get_service_by_name(service).unwrap();
        for (names, is_built) in [(built, true), (open, false)] {
            for name in names {
                let descriptor = descriptor.methods().find(|method| method.name() == *name).unwrap();
                methods.push(Method { path: format!("/{service}/{name}"), descriptor, is_built });
            }
        }
    }
    methods
}

/// Whether a status is one that a server may give to nonsense.
fn is_acceptable(method: &Method, status: &Status) -> bool {
    match status.code() {
        // RPCs that are built refuse in this way what of them is not.
        Code::Unimplemented => true,
        // gRPC's own answer, here as in every implementation, to bytes that are not the message.
        Code::Internal => status.message().starts_with("failed to decode Protobuf message"),
        Code::Unknown | Code::DataLoss => false,
        _ => method.is_built || status.code() == Code::Cancelled,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nonsense_changes_nothing() {
    let number = |name: &str| std::env::var(name).ok().map(|value| value.parse::<u64>().unwrap());
    let seed = number("PERDURE_FUZZ_SEED").unwrap_or_else(|| u64::from(std::process::id()));
    let seconds = number("PERDURE_FUZZ_SECONDS").unwrap_or(DEFAULT_SECONDS);
    eprintln!("PERDURE_FUZZ_SEED={seed}");

    let directory = tempdir().unwrap();
    let mut server =
        Server::start(directory.path(), &["--namespace", generate::NAMESPACE, "--namespace", control::NAMESPACE]);
    let control = Control::set_up(server.client().await).await;
    let before = control.look().await;

    let pool = Arc::new(Pool::new(control.tokens()));
    let methods = Arc::new(methods());
    let deadline = Instant::now() + Duration::from_secs(seconds);
    let mut callers = Vec::new();
    for caller in 0..CALLERS {
        let wire = Wire::connect(&server.address).await;
        let (pool, methods) = (pool.clone(), methods.clone());
        callers.push(tokio::spawn(
            async move { call_until(deadline, seed ^ (caller << 48), wire, &pool, &methods).await },
        ));
    }
    let mut answers: BTreeMap<(String, String), u64> = BTreeMap::new();
    for caller in callers {
        for (key, count) in caller.await.unwrap() {
            *answers.entry(key).or_default() += count;
        }
    }
    report(&answers);

    assert!(server.is_running(), "{}", server.log());
    assert_eq!(control.look().await, before);
    let log = server.log();
    assert!(!log.contains("panicked") && !log.contains("ERROR"), "{log}");
    for method in methods.iter().filter(|method| method.is_built) {
        assert!(answers.keys().any(|(name, _)| name == method.descriptor.name()), "{} was never called", method.path);
    }

    // What was made of the nonsense is durable, and reads back the same.
    let mut client = server.client().await;
    let mut histories = Vec::new();
    for run in control::current_runs(&mut client, generate::NAMESPACE, &generate::workflow_ids()).await {
        histories.push((run.clone(), control::history(&mut client, generate::NAMESPACE, run).await.unwrap()));
    }
    assert!(!histories.is_empty());
    server.signal("KILL");
    server.wait();
    let server = Server::start(directory.path(), &[]);
    let control = control.reconnect(server.client().await);
    assert_eq!(control.look().await, before);
    let mut client = server.client().await;
    for (run, before) in histories {
        let after = control::history(&mut client, generate::NAMESPACE, run.clone()).await.unwrap();
        // Timers may have gone off meanwhile.
        assert!(after.starts_with(&before), "{run:?}: {before:#?} has become {after:#?}");
    }
    let log = server.log();
    assert!(!log.contains("panicked") && !log.contains("ERROR"), "{log}");
}

async fn call_until(
    deadline: Instant,
    mut seed: u64,
    mut wire: Wire,
    pool: &Pool,
    methods: &[Method],
) -> BTreeMap<(String, String), u64> {
    let mut answers = BTreeMap::new();
    while Instant::now() < deadline {
        seed += 1;
        let mut generator = Generator::new(seed, pool);
        let method = generator.pick_method(methods);
        let (request, bytes) = generator.request(&method.descriptor);
        let answer = wire.call(&method.path, bytes).await;
        let code = match answer {
            Ok(bytes) => {
                let response = DynamicMessage::decode(method.descriptor.output(), bytes).unwrap();
                pool.harvest(&response);
                "Ok".to_owned()
            }
            Err(status) => {
                assert!(
                    is_acceptable(method, &status),
                    "request {seed} of {}: {status:?}\n{}",
                    method.path,
                    request.encode_to_vec().escape_ascii(),
                );
                format!("{:?}", status.code())
            }
        };
        *answers.entry((method.descriptor.name().to_owned(), code)).or_default() += 1;
    }
    answers
}

fn report(answers: &BTreeMap<(String, String), u64>) {
    eprintln!("{} requests", answers.values().sum::<u64>());
    for ((method, code), count) in answers.iter().filter(|((_, code), _)| code != "Unimplemented") {
        eprintln!("{count:>7} {code:<20} {method}");
    }
}
