//! What travels in HTTP headers: links, times, and the names of the headers themselves.

use http::{HeaderMap, HeaderName, HeaderValue};
use perdure_proto::temporal::api::nexus::v1::Link;

pub const OPERATION_STATE: &str = "nexus-operation-state";
pub const OPERATION_TOKEN: &str = "nexus-operation-token";
pub const OPERATION_START_TIME: &str = "nexus-operation-start-time";
pub const OPERATION_CLOSE_TIME: &str = "nexus-operation-close-time";
pub const REQUEST_ID: &str = "nexus-request-id";
pub const LINK: &str = "nexus-link";
/// Whether the sender of an error wants the request tried again.
pub const RETRYABLE: &str = "nexus-request-retryable";
/// Headers of a start that the completion is to bring back begin so.
pub const CALLBACK_PREFIX: &str = "nexus-callback-";
pub const CONTENT_PREFIX: &str = "content-";
pub const REQUEST_TIMEOUT: &str = "request-timeout";
pub const OPERATION_TIMEOUT: &str = "operation-timeout";
/// The sender knows failures of Temporal's, and errors as failures of their own.
pub const FAILURE_SUPPORT: &str = "temporal-nexus-failure-support";
/// Who has failed: the worker, or nobody said so.
pub const FAILURE_SOURCE: &str = "temporal-nexus-failure-source";
pub const SOURCE_WORKER: &str = "worker";

/// The first value of a header, if it is text.
pub fn get<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

/// Sets a header; one that HTTP does not take is left out.
pub fn set(headers: &mut HeaderMap, name: &str, value: &str) {
    match (HeaderName::try_from(name), HeaderValue::from_str(value)) {
        (Ok(name), Ok(value)) => drop(headers.insert(name, value)),
        _ => tracing::debug!(name, "a header that HTTP does not take is left out"),
    }
}

/// Headers as Nexus has them: one value a name, in lower case. Without those that begin with one of `except`.
pub fn plain(headers: &HeaderMap, except: &[&str]) -> std::collections::HashMap<String, String> {
    let is_wanted = |name: &str| !except.iter().any(|prefix| name.starts_with(prefix));
    let names = headers.keys().filter(|name| is_wanted(name.as_str()));
    names.map(|name| (name.as_str().to_owned(), get(headers, name.as_str()).to_owned())).collect()
}

/// The headers with that prefix, without it.
pub fn stripped(headers: &HeaderMap, prefix: &str) -> impl Iterator<Item = (String, String)> {
    headers.keys().filter_map(move |name| {
        let stripped = name.as_str().strip_prefix(prefix)?;
        Some((stripped.to_owned(), get(headers, name.as_str()).to_owned()))
    })
}

/// Adds a header for each link.
pub fn set_links(headers: &mut HeaderMap, links: &[Link]) {
    for link in links.iter().filter(|link| is_url(&link.url) && is_type(&link.r#type)) {
        if let Ok(value) = HeaderValue::from_str(&format!("<{}>; type=\"{}\"", link.url, link.r#type)) {
            headers.append(LINK, value);
        }
    }
}

/// `None` if a link cannot be read.
pub fn links(headers: &HeaderMap) -> Option<Vec<Link>> {
    let values = headers.get_all(LINK).iter().map(|value| value.to_str().ok());
    let texts: Option<Vec<&str>> = values.collect();
    let mut links = Vec::new();
    for text in texts? {
        let mut rest = text.trim();
        while !rest.is_empty() {
            let (link, after) = link(rest)?;
            links.push(link);
            rest = after.trim_start();
            rest = match rest.strip_prefix(',') {
                Some(next) => next.trim_start(),
                None if rest.is_empty() => rest,
                None => return None,
            };
        }
    }
    Some(links)
}

/// `<url>; type="a.b.C"`, and what follows.
fn link(text: &str) -> Option<(Link, &str)> {
    let (url, rest) = text.strip_prefix('<')?.split_once('>')?;
    let end = rest.find(',').unwrap_or(rest.len());
    let (parameters, after) = rest.split_at(end);
    let mut parameters = parameters.split(';').map(str::trim);
    if !parameters.next()?.is_empty() {
        return None;
    }
    let mut kind = None;
    for parameter in parameters {
        let (key, value) = parameter.split_once('=')?;
        let value = value.trim();
        let quoted = value.strip_prefix('"').and_then(|value| value.strip_suffix('"'));
        if quoted.is_none() && value.contains('"') {
            return None;
        }
        if key.trim() == "type" {
            kind = Some(quoted.unwrap_or(value));
        }
    }
    let (url, kind) = (url.trim(), kind?);
    (is_url(url) && is_type(kind)).then(|| (Link { url: url.to_owned(), r#type: kind.to_owned() }, after))
}

fn is_url(url: &str) -> bool {
    !url.is_empty() && url.bytes().all(|b| b.is_ascii_graphic() && b != b'<' && b != b'>')
}

fn is_type(kind: &str) -> bool {
    !kind.is_empty() && kind.bytes().all(|b| b.is_ascii_alphanumeric() || b"_./".contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link_to(url: &str) -> Link {
        Link { url: url.into(), r#type: "temporal.api.common.v1.Link.WorkflowEvent".into() }
    }

    #[test]
    fn links_come_back_as_they_went() {
        let sent = vec![link_to("temporal:///namespaces/a/workflows/b%2Cc/d/history?eventID=1,2"), link_to("http://x")];
        let mut headers = HeaderMap::new();
        set_links(&mut headers, &sent);
        set_links(&mut headers, &[link_to(""), Link { url: "x".into(), r#type: "no type".into() }]);
        assert_eq!(links(&headers), Some(sent));
        assert_eq!(links(&HeaderMap::new()), Some(vec![]));
    }

    #[test]
    fn several_links_in_one_header() {
        let read = |text: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(LINK, HeaderValue::from_static(text));
            links(&headers).map(|links| links.into_iter().map(|link| (link.url, link.r#type)).collect::<Vec<_>>())
        };
        let pair = |url: &str, kind: &str| (url.to_owned(), kind.to_owned());
        assert_eq!(read(r#"<a>; type="x", <b>;rel=1; type=y"#), Some(vec![pair("a", "x"), pair("b", "y")]));
        for nonsense in ["a", "<a>", "<>; type=x", "<a>; rel=x", "<a> b; type=x", "<a>; type=\"x", "<a>; type=x y"] {
            assert_eq!(read(nonsense), None, "{nonsense}");
        }
    }
}
