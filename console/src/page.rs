//! What all pages have in common.

use axum::{
    http::StatusCode,
    response::{Html, IntoResponse, Response},
};
use maud::{DOCTYPE, Markup, PreEscaped, html};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use tonic::{Code, Status};

/// What a part of an address may say as it is.
const UNRESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// The mark: a ring, not closed.
const ICON: &str = "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'%3E%3Ccircle cx='8' cy='8' \
                    r='5.5' fill='none' stroke='%232f6fde' stroke-width='3' stroke-dasharray='27 8'/%3E%3C/svg%3E";
const MARK: &str = "<svg class=\"mark\" viewBox=\"0 0 16 16\" aria-hidden=\"true\"><circle cx=\"8\" cy=\"8\" r=\"5.5\" \
                    fill=\"none\" stroke=\"currentColor\" stroke-width=\"3\" stroke-dasharray=\"27 8\"/></svg>";

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Place {
    Workflows,
    Queues,
    Cluster,
    Elsewhere,
}

const PLACES: [(Place, &str, &str); 3] = [
    (Place::Workflows, "/workflows", "Workflows"),
    (Place::Queues, "/task-queues", "Task queues"),
    (Place::Cluster, "/cluster", "Cluster"),
];

pub struct Page<'a> {
    pub place: Place,
    pub title: &'a str,
    /// Chosen; goes along to other pages.
    pub namespace: Option<&'a str>,
    /// Whether what is shown may change.
    pub live: bool,
}

impl Page<'_> {
    pub fn with(&self, content: &Markup) -> Response {
        Html(self.markup(content).into_string()).into_response()
    }

    pub fn markup(&self, content: &Markup) -> Markup {
        let kept: Vec<(&str, &str)> = self.namespace.map(|name| ("namespace", name)).into_iter().collect();
        html! {
            (DOCTYPE)
            html lang="en" {
                head {
                    meta charset="utf-8";
                    meta name="viewport" content="width=device-width, initial-scale=1";
                    meta name="color-scheme" content="light dark";
                    title { (self.title) " · Perdure" }
                    link rel="icon" href=(ICON);
                    link rel="stylesheet" href="/console.css";
                    script src="/console.js" defer {}
                }
                body data-live[self.live] {
                    header.top {
                        a.brand href="/" { (PreEscaped(MARK)) "Perdure" }
                        nav {
                            @for (place, path, name) in PLACES {
                                a href=(link(path, if place == Place::Cluster { &[] } else { &kept }))
                                    aria-current=[(place == self.place).then_some("page")] { (name) }
                            }
                        }
                        span #pulse role="status" {}
                    }
                    main { (content) }
                }
            }
        }
    }
}

/// A part that is replaced when it changes.
pub fn part(name: &str, content: &Markup) -> Markup {
    html! { section data-part=(name) { (content) } }
}

/// An address with parameters.
pub fn link(path: &str, parameters: &[(&str, &str)]) -> String {
    let mut query = form_urlencoded::Serializer::new(String::new());
    query.extend_pairs(parameters.iter().filter(|(_, value)| !value.is_empty()));
    let query = query.finish();
    if query.is_empty() { path.to_owned() } else { format!("{path}?{query}") }
}

/// The page of a run, or of a workflow's current one.
pub fn run_link(namespace: &str, workflow_id: &str, run_id: &str) -> String {
    let encoded = |text| utf8_percent_encode(text, UNRESERVED);
    let current = format!("/namespaces/{}/workflows/{}", encoded(namespace), encoded(workflow_id));
    if run_id.is_empty() { current } else { format!("{current}/{}", encoded(run_id)) }
}

/// Parameters of an address; the last of a name counts.
pub struct Parameters(Vec<(String, String)>);

impl Parameters {
    pub fn of(query: Option<&str>) -> Self {
        Self(form_urlencoded::parse(query.unwrap_or_default().as_bytes()).into_owned().collect())
    }

    pub fn get(&self, name: &str) -> &str {
        self.0.iter().rev().find(|(key, _)| key == name).map_or("", |(_, value)| value.as_str())
    }
}

/// A box with what went wrong.
pub fn problem(text: &str) -> Markup {
    html! { p.problem role="alert" { (text) } }
}

pub fn failure(code: StatusCode, text: &str) -> Response {
    let page = Page { place: Place::Elsewhere, title: "Not shown", namespace: None, live: false };
    (code, page.with(&problem(text))).into_response()
}

/// What a service refused.
pub fn refused(status: &Status) -> Response {
    failure(code_of(status), status.message())
}

pub fn code_of(status: &Status) -> StatusCode {
    match status.code() {
        Code::InvalidArgument | Code::FailedPrecondition | Code::OutOfRange => StatusCode::BAD_REQUEST,
        Code::NotFound => StatusCode::NOT_FOUND,
        Code::PermissionDenied => StatusCode::FORBIDDEN,
        Code::Unauthenticated => StatusCode::UNAUTHORIZED,
        Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
        Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Code::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_any_kind_fit_into_an_address() {
        assert_eq!(run_link("a b", "x/../y?z#\"<", ""), "/namespaces/a%20b/workflows/x%2F..%2Fy%3Fz%23%22%3C");
        assert_eq!(
            link("/workflows", &[("query", "a = \"b\" & c"), ("page", "")]),
            "/workflows?query=a+%3D+%22b%22+%26+c"
        );
        let parameters = Parameters::of(Some("query=a+%3D+%22b%22&query=c%3Dd"));
        assert_eq!((parameters.get("query"), parameters.get("page")), ("c=d", ""));
    }

    #[test]
    fn what_comes_from_outside_is_escaped() {
        let page = Page { place: Place::Workflows, title: "<script>", namespace: Some("\"><b>"), live: true };
        let text = page.markup(&problem("</p><script>alert(1)</script>")).into_string();
        assert!(!text.contains("<script>") && !text.contains("<b>"), "{text}");
        assert!(text.contains("&lt;/p&gt;&lt;script&gt;alert(1)"), "{text}");
    }
}
