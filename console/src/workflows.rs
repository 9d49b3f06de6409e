//! The list of runs: by status, by the filter language, page by page.

use axum::{
    extract::{RawQuery, State},
    http::HeaderMap,
    response::{IntoResponse, Response},
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use maud::{Markup, html};
use perdure_proto::temporal::api::{
    enums::v1::WorkflowExecutionStatus as Status, workflow::v1::WorkflowExecutionInfo,
    workflowservice::v1::ListWorkflowExecutionsResponse,
};

use crate::{
    Site,
    ask::NamespaceName,
    counts::ByStatus,
    format::{self, ago, badge, nanos, number, span},
    page::{self, Page, Parameters, Place, link, part, problem, run_link},
};

/// Of the namespaces that there are, that one or the first.
const USUAL_NAMESPACE: &str = "default";

/// What is asked for.
struct Search {
    namespace: String,
    query: String,
    /// Of the page before.
    token: String,
}

pub async fn show(State(site): State<Site>, headers: HeaderMap, RawQuery(query): RawQuery) -> Response {
    let ask = site.asker(&headers);
    let namespaces = match ask.namespaces().await {
        Ok(namespaces) => namespaces,
        Err(status) => return page::refused(&status),
    };
    let parameters = Parameters::of(query.as_deref());
    let search = Search {
        namespace: chosen(&namespaces, parameters.get("namespace")).to_owned(),
        query: parameters.get("query").trim().to_owned(),
        token: parameters.get("page").to_owned(),
    };
    let token = URL_SAFE_NO_PAD.decode(&search.token).unwrap_or_default();
    let found = ask.runs(&search.namespace, &search.query, token.into()).await;
    let (code, found) = match found {
        Ok(found) => (axum::http::StatusCode::OK, Ok(found)),
        Err(status) => (page::code_of(&status), Err(status.message().to_owned())),
    };
    let counts = match code {
        axum::http::StatusCode::OK | axum::http::StatusCode::BAD_REQUEST => {
            site.counts.of(&ask, &search.namespace).await
        }
        _ => None,
    };
    let content = html! {
        h1 { "Workflows" }
        (form(&search, &namespaces))
        (part("counts", &chips(&search, &counts)))
        (part("list", &list(&search, found.as_ref(), ask.now())))
    };
    let page = Page {
        place: Place::Workflows,
        title: "Workflows",
        namespace: Some(&search.namespace),
        live: search.token.is_empty() && code.is_success(),
    };
    (code, page.with(&content)).into_response()
}

/// The namespace that was named, else the usual one.
fn chosen<'a>(namespaces: &'a [NamespaceName], named: &'a str) -> &'a str {
    if !named.is_empty() {
        return named;
    }
    let usual = namespaces.iter().find(|namespace| namespace.name == USUAL_NAMESPACE);
    usual.or(namespaces.first()).map_or(USUAL_NAMESPACE, |namespace| &namespace.name)
}

fn form(search: &Search, namespaces: &[NamespaceName]) -> Markup {
    let is_known = namespaces.iter().any(|namespace| namespace.name == search.namespace);
    html! {
        form.search method="get" action="/workflows" role="search" {
            label {
                span { "Namespace" }
                select name="namespace" data-submits {
                    @if !is_known { option selected { (search.namespace) } }
                    @for namespace in namespaces {
                        option selected[namespace.name == search.namespace] { (namespace.name) }
                    }
                }
            }
            label.grow {
                span { "Filter" }
                input type="search" name="query" value=(search.query) autocomplete="off" autocapitalize="off"
                    spellcheck="false" placeholder="WorkflowType = 'Order' AND StartTime > '2026-01-01T00:00:00Z'";
            }
            button { "Search" }
        }
    }
}

/// A count of each status, to choose it.
fn chips(search: &Search, counts: &ByStatus) -> Markup {
    let count_of = |name: &str| {
        counts.as_ref().map(|counts| counts.iter().find(|(status, _)| status == name).map_or(0, |(_, count)| *count))
    };
    let total = counts.as_ref().map(|counts| counts.iter().map(|(_, count)| count).sum::<i64>());
    let chip = |name: &str, class: &str, query: &str, count: Option<i64>| {
        html! {
            a.chip.(class) href=(link("/workflows", &[("namespace", &search.namespace), ("query", query)]))
                aria-current=[(search.query == query).then_some("true")] {
                (name) @if let Some(count) = count { " " b { (number(count)) } }
            }
        }
    };
    let statuses = [
        Status::Running,
        Status::Completed,
        Status::Failed,
        Status::TimedOut,
        Status::Canceled,
        Status::Terminated,
        Status::ContinuedAsNew,
        Status::Paused,
    ];
    html! {
        div.chips {
            (chip("All", "", "", total))
            @for status in statuses {
                @let (value, name, class) = format::status(status as i32);
                @let query = format!("ExecutionStatus = '{value}'");
                // Rare ones only if there are any.
                @if status != Status::Paused || count_of(value) > Some(0) {
                    (chip(name, class, &query, count_of(value)))
                }
            }
        }
    }
}

fn list(search: &Search, found: Result<&ListWorkflowExecutionsResponse, &String>, now: i64) -> Markup {
    let found = match found {
        Ok(found) => found,
        Err(message) => return problem(message),
    };
    if found.executions.is_empty() {
        let text = match (search.query.is_empty(), search.token.is_empty()) {
            (true, true) => "No workflow has run in this namespace yet.",
            (false, true) => "No run matches this filter.",
            (_, false) => "There are no more.",
        };
        return html! { p.empty { (text) } };
    }
    let token = URL_SAFE_NO_PAD.encode(&found.next_page_token);
    let to = |token: &str| {
        link("/workflows", &[("namespace", &search.namespace), ("query", &search.query), ("page", token)])
    };
    html! {
        div.scroll {
            table.list.runs {
                thead {
                    tr {
                        th { "Status" } th { "Workflow" } th.wide { "Type" } th.wide { "Task queue" } th.num { "Started" }
                        th.num.wide { "Took" } th.num.wide { "Events" }
                    }
                }
                tbody { @for run in &found.executions { (row(&search.namespace, run, now)) } }
            }
        }
        @if !search.token.is_empty() || !token.is_empty() {
            p.pages {
                @if !search.token.is_empty() { a href=(to("")) { "First page" } }
                @if !token.is_empty() { a href=(to(&token)) rel="next" { "Next page" } }
            }
        }
    }
}

fn row(namespace: &str, run: &WorkflowExecutionInfo, now: i64) -> Markup {
    let execution = run.execution.clone().unwrap_or_default();
    let type_name = run.r#type.as_ref().map_or("", |kind| kind.name.as_str());
    let began = nanos(run.start_time.as_ref());
    let took = began.map(|began| nanos(run.close_time.as_ref()).unwrap_or(now).saturating_sub(began));
    html! {
        tr {
            td { (badge(run.status)) }
            td.id {
                a href=(run_link(namespace, &execution.workflow_id, &execution.run_id)) { (execution.workflow_id) }
                span.narrow { (type_name) }
            }
            td.wide { (type_name) }
            td.wide { (run.task_queue) }
            td.num { (ago(began, now)) }
            td.num.wide { (took.map(span).unwrap_or_default()) }
            td.num.wide { (number(run.history_length)) }
        }
    }
}

#[cfg(test)]
mod tests {
    use perdure_proto::temporal::api::common::v1::{WorkflowExecution, WorkflowType};

    use super::*;

    fn search(query: &str) -> Search {
        Search { namespace: "default".into(), query: query.into(), token: String::new() }
    }

    #[test]
    fn ids_and_types_are_escaped() {
        let evil = "\"><img src=x onerror=alert(1)>";
        let run = WorkflowExecutionInfo {
            execution: Some(WorkflowExecution { workflow_id: evil.into(), run_id: evil.into() }),
            r#type: Some(WorkflowType { name: evil.into() }),
            task_queue: evil.into(),
            status: Status::Running as i32,
            ..WorkflowExecutionInfo::default()
        };
        let found = ListWorkflowExecutionsResponse { executions: vec![run], next_page_token: bytes::Bytes::new() };
        let text = list(&search(evil), Ok(&found), 0).into_string() + &form(&search(evil), &[]).into_string();
        assert!(!text.contains("<img"), "{text}");
        assert_eq!(text.matches("&lt;img").count(), 5, "id, type twice, queue, filter: {text}");
    }

    #[test]
    fn an_empty_list_says_why() {
        let none = ListWorkflowExecutionsResponse::default();
        let text = |query| list(&search(query), Ok(&none), 0).into_string();
        assert!(text("").contains("No workflow has run"));
        assert!(text("WorkflowId = 'x'").contains("No run matches"));
    }

    #[test]
    fn a_filter_that_is_refused_is_shown_with_the_reason() {
        let text = list(&search("Nonsense ="), Err(&"invalid query: <here>".to_owned()), 0).into_string();
        assert!(text.contains("role=\"alert\"") && text.contains("invalid query: &lt;here&gt;"), "{text}");
    }

    #[test]
    fn counts_that_are_not_known_are_left_out() {
        let text = chips(&search(""), &None).into_string();
        assert!(!text.contains("<b>") && text.contains("Running"), "{text}");
        let counts = Some(vec![("Running".to_owned(), 1_234), ("Paused".to_owned(), 1)]);
        let text = chips(&search("ExecutionStatus = 'Running'"), &counts).into_string();
        assert!(text.contains("1,234") && text.contains("1,235") && text.contains("Paused"), "{text}");
        assert_eq!(text.matches("aria-current").count(), 1, "{text}");
    }
}
