//! Who may ask, and what pages may do.
//!
//! The console has no users of its own. It is read-only, so that nothing can be done in the name of who looks at it, and by
//! default it is served to this machine only. A browser on this machine also shows pages of strangers: they cannot read the
//! answers of another origin, unless they make themselves the same origin by naming this address in their own DNS. So on a
//! loopback address a request has to name it as such.

use std::net::IpAddr;

use axum::{
    extract::{Request, State},
    http::{HeaderName, HeaderValue, StatusCode, header},
    middleware::Next,
    response::Response,
};

use crate::page;

#[derive(Clone, Copy)]
pub struct Guard {
    pub on_loopback: bool,
}

/// Nothing but the console's own two files, no frames, and no leaks to other sites.
const HEADERS: [(HeaderName, &str); 5] = [
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src data:; form-action 'self'; \
         base-uri 'none'; frame-ancestors 'none'",
    ),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::REFERRER_POLICY, "no-referrer"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
];

pub async fn check(State(guard): State<Guard>, request: Request, next: Next) -> Response {
    let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let mut response = if guard.on_loopback && !names_this_machine(host) {
        page::failure(StatusCode::FORBIDDEN, "The console is served to this machine only, by the name of localhost.")
    } else {
        next.run(request).await
    };
    for (name, value) in HEADERS {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    if !response.headers().contains_key(header::CACHE_CONTROL) {
        response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    }
    response
}

/// `HOST[:PORT]`. An address cannot be made to be another one.
fn names_this_machine(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split_once(']').map_or(rest, |(name, _)| name),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    let name = name.to_ascii_lowercase();
    name == "localhost" || name.ends_with(".localhost") || name.parse::<IpAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_anybody_can_point_here_is_not_this_machine() {
        for host in ["localhost:8233", "LOCALHOST", "127.0.0.1:8233", "[::1]:8233", "perdure.localhost:1"] {
            assert!(names_this_machine(host), "{host}");
        }
        for host in ["evil.example:8233", "localhost.evil.example", "", "127.0.0.1.evil.example", "[evil]:1"] {
            assert!(!names_this_machine(host), "{host}");
        }
    }
}
