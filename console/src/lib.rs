//! The console: pages that every node serves, for people who want to see what the cluster does and where a workflow is.
//!
//! It shows and changes nothing. Everything comes from the services that clients and operators call (`WorkflowService`, and
//! `Admin` of the cluster port), called in this process: there is no second way to read. Pages are made here, whole, and work
//! without a script; one that runs asks for the same page again and replaces the parts that have changed.
//!
//! Not here: who may see what. Credentials that come with a request go on with each call that is made for it, as through the
//! HTTP API; what operators ask has none, so a server keeps the console on its own machine unless it is told otherwise
//! ([`guard`]).
//!
//! What comes from outside (ids, payloads, messages of failures) reaches a page through `maud`'s escaping only, and a policy
//! forbids pages to run or load anything but their own two files.

mod ask;
mod cluster;
mod counts;
mod events;
mod format;
mod guard;
mod page;
mod payload;
mod queues;
mod ring;
mod run;
mod timeline;
mod workflows;

use std::sync::Arc;

use axum::{
    Router,
    extract::{Path, State},
    http::{HeaderMap, StatusCode, header},
    middleware,
    response::{IntoResponse, Redirect, Response},
    routing::get,
};
use perdure_frontend::Frontend;
use perdure_proto::perdure::node::v1::admin_server::Admin;

use crate::{ask::Asker, counts::Counts};

/// What the console shows, and where it is served.
#[derive(Clone)]
pub struct Console {
    pub frontend: Frontend,
    pub admin: Arc<dyn Admin>,
    /// Nanoseconds since the epoch.
    pub clock: fn() -> i64,
    /// Served on a loopback address only.
    pub on_loopback: bool,
}

#[derive(Clone)]
struct Site {
    console: Console,
    counts: Arc<Counts>,
}

impl Site {
    fn asker<'a>(&'a self, headers: &'a HeaderMap) -> Asker<'a> {
        Asker::new(&self.console, headers)
    }
}

/// The pages, to be served on a listener of their own.
pub fn router(console: Console) -> Router {
    let guard = guard::Guard { on_loopback: console.on_loopback };
    let site = Site { console, counts: Arc::default() };
    Router::new()
        .route("/", get(async || Redirect::to("/workflows")))
        .route("/workflows", get(workflows::show))
        .route("/task-queues", get(queues::show))
        .route("/cluster", get(cluster::show))
        // As in Temporal's Web UI, so that one can go from page to page by changing the port.
        .route("/namespaces/{namespace}", get(to_workflows))
        .route("/namespaces/{namespace}/workflows", get(to_workflows))
        .route("/namespaces/{namespace}/workflows/{id}", get(run::show_current))
        .route("/namespaces/{namespace}/workflows/{id}/{run}", get(run::show))
        .route("/namespaces/{namespace}/workflows/{id}/{run}/{part}", get(run::show_part))
        .route("/console.css", get(async || file("text/css", include_str!("console.css"))))
        .route("/console.js", get(async || file("text/javascript", include_str!("console.js"))))
        .fallback(async || page::failure(StatusCode::NOT_FOUND, "There is no such page."))
        .with_state(site)
        .layer(middleware::from_fn_with_state(guard, guard::check))
}

async fn to_workflows(State(_): State<Site>, Path(namespace): Path<String>) -> Redirect {
    Redirect::to(&page::link("/workflows", &[("namespace", &namespace)]))
}

fn file(kind: &'static str, text: &'static str) -> Response {
    ([(header::CONTENT_TYPE, kind), (header::CACHE_CONTROL, "no-cache")], text).into_response()
}
