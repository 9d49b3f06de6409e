//! Task queues: who polls, and what waits.

use axum::{
    extract::{RawQuery, State},
    http::HeaderMap,
    response::Response,
};
use maud::{Markup, html};
use perdure_proto::perdure::node::v1::{QueueInfo, QueuesResponse};

use crate::{
    Site,
    ask::NamespaceName,
    format::{ago, number, span},
    page::{self, Page, Parameters, Place, link, part, problem},
};

/// Rows of one page; the longest backlogs come first.
const MOST_ROWS: usize = 500;
const STICKY: &str = "sticky";

pub async fn show(State(site): State<Site>, headers: HeaderMap, RawQuery(query): RawQuery) -> Response {
    let ask = site.asker(&headers);
    let namespaces = match ask.namespaces().await {
        Ok(namespaces) => namespaces,
        Err(status) => return page::refused(&status),
    };
    let parameters = Parameters::of(query.as_deref());
    let chosen = parameters.get("namespace");
    let with_sticky = !parameters.get("sticky").is_empty();
    let namespace = namespaces.iter().find(|namespace| namespace.name == chosen);
    let found = ask.queues(namespace.map_or("", |namespace| &namespace.id)).await;
    let content = html! {
        h1 { "Task queues" }
        form.search method="get" action="/task-queues" {
            label {
                span { "Namespace" }
                select name="namespace" data-submits {
                    option value="" { "All" }
                    @for namespace in &namespaces { option selected[namespace.name == chosen] { (namespace.name) } }
                }
            }
            @if with_sticky { input type="hidden" name="sticky" value="1"; }
            button { "Show" }
        }
        (part("queues", &match found {
            Ok(found) => table(&found, &namespaces, chosen, with_sticky, ask.now()),
            Err(status) => problem(status.message()),
        }))
    };
    let page = Page { place: Place::Queues, title: "Task queues", namespace: Some(chosen), live: true };
    page.with(&content)
}

fn table(found: &QueuesResponse, namespaces: &[NamespaceName], chosen: &str, with_sticky: bool, now: i64) -> Markup {
    let sticky = found.queues.iter().filter(|queue| queue.kind == STICKY).count();
    let shown: Vec<&QueueInfo> =
        found.queues.iter().filter(|queue| with_sticky || queue.kind != STICKY).take(MOST_ROWS).collect();
    let name_of =
        |id: &str| namespaces.iter().find(|namespace| namespace.id == id).map_or(id, |found| &found.name).to_owned();
    html! {
        @if !found.silent.is_empty() { (problem(&format!("No answer from {}.", found.silent.join(", ")))) }
        @if shown.is_empty() {
            p.empty { "No task queue is in use. One appears with its first worker or task." }
        } @else {
            div.scroll {
                table.list {
                    thead {
                        tr {
                            th { "Task queue" } th.wide { "Namespace" } th.wide { "Tasks" } th.num { "Pollers" }
                            th.num.wide { "Last poll" } th.num { "Backlog" } th.num { "Oldest" } th.num.wide { "In" }
                            th.num.wide { "Out" } th.wide { "Home" }
                        }
                    }
                    tbody { @for queue in &shown { (row(queue, &name_of(&queue.namespace_id), now)) } }
                }
            }
        }
        p.note {
            (number(i64::try_from(found.total).unwrap_or(i64::MAX))) " in memory"
            @if sticky > 0 {
                ", of them " (number(sticky as i64)) " of one worker each (sticky): "
                @let flag = if with_sticky { "" } else { "1" };
                a href=(link("/task-queues", &[("namespace", chosen), ("sticky", flag)])) {
                    (if with_sticky { "hide" } else { "show" })
                }
            }
            "."
        }
    }
}

fn row(queue: &QueueInfo, namespace: &str, now: i64) -> Markup {
    let waits = queue.backlog > 0;
    let is_stuck = waits && queue.pollers == 0;
    html! {
        tr.alert[is_stuck] {
            td.id { (queue.name) span.narrow { (queue.kind) ", " (namespace) } }
            td.wide { (namespace) }
            td.wide { (queue.kind) }
            td.num { @if is_stuck { b.bad { "none" } } @else { (queue.pollers) } }
            td.num.wide { (ago(Some(queue.last_poll_ns), now)) }
            td.num { @if waits { b { (number(i64::try_from(queue.backlog).unwrap_or(i64::MAX))) } } @else { "0" } }
            td.num { @if waits { (span(queue.backlog_age_ns)) } @else { span.dim { "–" } } }
            td.num.wide { (rate(queue.added_per_second)) }
            td.num.wide { (rate(queue.dispatched_per_second)) }
            td.wide.dim { (queue.node) }
        }
    }
}

fn rate(per_second: f32) -> String {
    if per_second < 0.05 { "0/s".to_owned() } else { format!("{per_second:.1}/s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(kind: &str, pollers: u32, backlog: u64) -> QueueInfo {
        QueueInfo {
            namespace_id: "id".into(),
            name: "<orders>".into(),
            kind: kind.into(),
            pollers,
            backlog,
            backlog_age_ns: 65_000_000_000,
            ..QueueInfo::default()
        }
    }

    fn shown(queues: Vec<QueueInfo>, with_sticky: bool) -> String {
        let total = queues.len() as u64;
        let namespaces = [NamespaceName { id: "id".into(), name: "shop".into() }];
        table(&QueuesResponse { queues, total, silent: Vec::new() }, &namespaces, "", with_sticky, 0).into_string()
    }

    #[test]
    fn a_backlog_without_pollers_stands_out() {
        let text = shown(vec![queue("workflow", 0, 3), queue("activity", 2, 0)], false);
        assert_eq!(text.matches("class=\"alert\"").count(), 1, "{text}");
        assert!(text.contains("1 min 5 s") && text.contains("&lt;orders&gt;") && text.contains("shop"), "{text}");
    }

    #[test]
    fn an_empty_node_says_so() {
        assert!(shown(Vec::new(), false).contains("No task queue is in use"));
    }

    #[test]
    fn sticky_queues_are_shown_on_demand() {
        let all = || vec![queue("workflow", 1, 0), queue(STICKY, 1, 0)];
        assert_eq!(shown(all(), false).matches(">sticky</td>").count(), 0);
        assert_eq!(shown(all(), true).matches(">sticky</td>").count(), 1);
    }
}
