//! Dashboards, alerts and the page about metrics, against the `/metrics` of a server that has run a workflow.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{Read, Write},
    net::TcpStream,
};

use perdure_proto::temporal::api::{
    command::v1::{
        Command, CompleteWorkflowExecutionCommandAttributes, ScheduleActivityTaskCommandAttributes, command::Attributes,
    },
    common::v1::ActivityType,
    enums::v1::CommandType,
    workflowservice::v1::{
        PollActivityTaskQueueRequest, PollWorkflowTaskQueueRequest, RespondActivityTaskCompletedRequest,
        RespondWorkflowTaskCompletedRequest,
    },
};
use serde_json::Value as Json;
use serde_yaml_ng::Value;
use tempfile::tempdir;

use crate::{
    common::{NAMESPACE, Server, describe, queue, start_request},
    path, text, yaml,
};

const PAGE: &str = "docs/metrics.md";
/// Prometheus' own.
const FOREIGN: [&str; 1] = ["up"];

/// Words of an expression that may be names of metrics: not functions, labels, keywords, or what is in quotes and brackets.
fn metrics_of(expression: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let unquoted: String = expression.split('"').step_by(2).collect::<Vec<_>>().join("\"\"");
    let mut rest = unquoted.as_str();
    let mut labels = false;
    while let Some(at) = rest.find(|c: char| c.is_ascii_alphabetic() || c == '_' || "{}[]()".contains(c)) {
        let word_end = rest[at..].find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len() - at);
        if word_end == 0 {
            labels = match &rest[at..=at] {
                "{" | "[" => true,
                "}" | "]" => false,
                _ => labels,
            };
            rest = &rest[at + 1..];
            continue;
        }
        let (word, after) = (&rest[at..at + word_end], rest[at + word_end..].trim_start());
        // The labels of `by (…)`.
        if matches!(word, "by" | "without" | "on" | "ignoring") {
            rest = after.split_once(')').map_or("", |(_, rest)| rest);
            continue;
        }
        let is_aggregation = matches!(word, "sum" | "max" | "min" | "avg" | "count");
        let is_number = rest[..at].ends_with(|c: char| c.is_ascii_digit() || c == '.');
        if !labels
            && !after.starts_with('(')
            && !is_aggregation
            && !is_number
            && !matches!(word, "or" | "and" | "unless" | "bool")
        {
            names.insert(word.to_owned());
        }
        rest = &rest[at + word_end..];
    }
    names
}

/// Of a histogram, `…_bucket` and so on are the metric without it.
fn base(name: &str) -> &str {
    ["_bucket", "_sum", "_count"].iter().find_map(|suffix| name.strip_suffix(suffix)).unwrap_or(name)
}

/// Names of the metrics in a scrape, as their types are declared.
fn declared(scrape: &str) -> BTreeMap<String, String> {
    let types = scrape.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
    types.map(|(name, kind)| (name.to_owned(), kind.to_owned())).collect()
}

fn scrape(address: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// A workflow with an activity, and the mistakes that clients make.
async fn use_it(server: &Server) {
    let mut client = server.client().await;
    client.start_workflow_execution(start_request("w")).await.unwrap();
    let again = perdure_proto::temporal::api::workflowservice::v1::StartWorkflowExecutionRequest {
        request_id: "another".into(),
        ..start_request("w")
    };
    client.start_workflow_execution(again).await.unwrap_err();
    client.describe_workflow_execution(describe("no such")).await.unwrap_err();
    client.start_workflow_execution(start_request("")).await.unwrap_err();

    let schedule = ScheduleActivityTaskCommandAttributes {
        activity_id: "a".into(),
        activity_type: Some(ActivityType { name: "A".into() }),
        task_queue: Some(queue("queue")),
        start_to_close_timeout: Some(prost_types::Duration { seconds: 60, nanos: 0 }),
        ..Default::default()
    };
    let attributes = Attributes::ScheduleActivityTaskCommandAttributes(schedule);
    complete(server, command(CommandType::ScheduleActivityTask, attributes)).await;
    let poll = PollActivityTaskQueueRequest {
        namespace: NAMESPACE.into(),
        task_queue: Some(queue("queue")),
        ..Default::default()
    };
    let task = client.poll_activity_task_queue(poll).await.unwrap().into_inner();
    let done = RespondActivityTaskCompletedRequest {
        namespace: NAMESPACE.into(),
        task_token: task.task_token,
        ..Default::default()
    };
    client.respond_activity_task_completed(done).await.unwrap();
    let attributes =
        Attributes::CompleteWorkflowExecutionCommandAttributes(CompleteWorkflowExecutionCommandAttributes::default());
    complete(server, command(CommandType::CompleteWorkflowExecution, attributes)).await;
}

fn command(command_type: CommandType, attributes: Attributes) -> Command {
    Command { command_type: command_type as i32, attributes: Some(attributes), ..Default::default() }
}

async fn complete(server: &Server, command: Command) {
    let mut client = server.client().await;
    let poll = PollWorkflowTaskQueueRequest {
        namespace: NAMESPACE.into(),
        task_queue: Some(queue("queue")),
        ..Default::default()
    };
    let task = client.poll_workflow_task_queue(poll).await.unwrap().into_inner();
    let done = RespondWorkflowTaskCompletedRequest {
        namespace: NAMESPACE.into(),
        task_token: task.task_token,
        commands: vec![command],
        ..Default::default()
    };
    client.respond_workflow_task_completed(done).await.unwrap();
}

/// All expressions of a dashboard.
fn expressions(json: &Json, found: &mut Vec<String>) {
    match json {
        Json::Object(fields) => {
            found.extend(fields.get("expr").and_then(Json::as_str).map(str::to_owned));
            fields.values().for_each(|inner| expressions(inner, found));
        }
        Json::Array(parts) => parts.iter().for_each(|inner| expressions(inner, found)),
        _ => {}
    }
}

/// Where each metric is used.
fn used() -> BTreeMap<String, String> {
    let mut used = BTreeMap::new();
    for file in fs::read_dir(path("deploy/grafana/dashboards")).unwrap() {
        let file = file.unwrap().path();
        let json: Json = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
        let mut found = Vec::new();
        expressions(&json, &mut found);
        assert!(found.len() > 10, "{}", file.display());
        for name in found.iter().flat_map(|expression| metrics_of(expression)) {
            used.insert(name, file.display().to_string());
        }
    }
    let rules = yaml("deploy/prometheus/alerts.yaml");
    for rule in rules["groups"][0]["rules"].as_sequence().unwrap() {
        let name = rule["alert"].as_str().unwrap();
        for key in ["summary", "description"] {
            assert!(matches!(&rule["annotations"][key], Value::String(_)), "{name} has no {key}");
        }
        for metric in metrics_of(rule["expr"].as_str().unwrap()) {
            used.insert(metric, name.to_owned());
        }
    }
    used
}

/// The metrics of the page's table, with what it says about when there are any.
fn page() -> BTreeMap<String, String> {
    let text = text(PAGE);
    let rows = text.lines().filter_map(|line| line.strip_prefix("| `"));
    rows.map(|row| row.split_once('`').unwrap())
        .map(|(name, rest)| (name.to_owned(), rest.rsplit('|').nth(1).unwrap().trim().to_owned()))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_metric_that_is_used_or_described_is_there() {
    let directory = tempdir().unwrap();
    let server = Server::start(directory.path(), &[]);
    use_it(&server).await;
    let scrape = scrape(&server.metrics_address);
    let declared = declared(&scrape);

    for (name, place) in used() {
        let there = declared.contains_key(&name) || declared.get(base(&name)).is_some_and(|kind| kind == "histogram");
        let in_a_cluster = page().get(base(&name)).is_some_and(|when| when == "in a cluster");
        assert!(there || in_a_cluster || FOREIGN.contains(&name.as_str()), "{place} uses {name}, which is not there");
    }
    let page = page();
    for name in declared.keys() {
        assert!(page.contains_key(name), "{PAGE} does not know {name}");
    }
    for (name, when) in &page {
        assert!(!when.is_empty() || declared.contains_key(name), "{PAGE} has {name}, which is not there");
    }
    let completed = scrape.lines().find(|line| line.starts_with("workflow_success{") && line.contains("\"default\""));
    assert_eq!(completed.and_then(|line| line.rsplit_once(' ')).map(|(_, count)| count), Some("1"), "{scrape}");
}

#[test]
fn names_are_found_in_expressions() {
    let names = |text: &str| metrics_of(text).into_iter().collect::<Vec<_>>();
    assert_eq!(names(r#"sum by (le, a) (rate(x_bucket{b=~"c d"}[5m])) / 1e9 > 4 * y"#), ["x_bucket", "y"]);
    assert_eq!(names("histogram_quantile(0.99, sum(rate(z[$__rate_interval])))"), ["z"]);
}
