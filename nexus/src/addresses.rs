//! Where callbacks may go: an operator names the addresses, as with Temporal.

use http::Uri;
use serde::Deserialize;

/// The address of callers in this cluster. Always allowed.
pub const SYSTEM_CALLBACK: &str = "temporal://system";

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct Rule {
    /// `host:port`, in which `*` stands for anything.
    pattern: String,
    #[serde(default)]
    allow_insecure: bool,
}

/// The rules, in the form of Temporal's setting `component.callbacks.allowedAddresses`: the first that an address matches
/// decides.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AddressRules(Vec<Rule>);

impl AddressRules {
    /// From JSON: `[{"Pattern": "*.example.com:443", "AllowInsecure": false}]`. Nothing: no address is allowed.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        serde_json::from_str(text).map(Self).map_err(|error| error.to_string())
    }

    /// Why a callback may not go there.
    pub fn check(&self, url: &str) -> Result<(), String> {
        if url == SYSTEM_CALLBACK {
            return Ok(());
        }
        let uri: Uri = url.parse().map_err(|error| format!("invalid callback url: {error}"))?;
        let scheme = uri.scheme_str().unwrap_or_default();
        if !["http", "https"].contains(&scheme) {
            return Err(format!("invalid url: unknown scheme: {url}"));
        }
        let host = uri.authority().map(|authority| authority.as_str()).unwrap_or_default();
        let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
        if host.is_empty() {
            return Err("invalid url: missing host".to_owned());
        }
        match self.0.iter().find(|rule| matches(&rule.pattern, host)) {
            None => Err(format!("invalid url: url does not match any configured callback address: {url}")),
            Some(rule) if scheme != "https" && !rule.allow_insecure => {
                Err(format!("invalid url: callback address does not allow insecure connections: {url}"))
            }
            Some(_) => Ok(()),
        }
    }
}

/// Whether a text is what the pattern says; in time that is bounded by the product of their lengths.
fn matches(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
    let (mut p, mut t) = (0, 0);
    // The last star, and up to where it has taken the text.
    let mut star = None;
    while t < text.len() {
        if p < pattern.len() && pattern[p] == b'*' {
            star = Some((p, t));
            p += 1;
        } else if p < pattern.len() && pattern[p] == text[t] {
            p += 1;
            t += 1;
        } else if let Some((at, taken)) = star {
            star = Some((at, taken + 1));
            p = at + 1;
            t = taken + 1;
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|b| *b == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        let check =
            |pattern: &str, text: &str, expect: bool| assert_eq!(matches(pattern, text), expect, "{pattern} {text}");
        check("*", "", true);
        check("*", "a:1", true);
        check("prefix.*.domain", "prefix.a.b.domain", true);
        check("prefix.*.domain", "prefix.a.domains", false);
        check("a*b*c", "aXbbYc", true);
        check("a*b*c", "aXcYb", false);
        check("a.b", "a.b", true);
        check("a.b", "aab", false);
    }

    #[test]
    fn where_callbacks_may_go() {
        let rules = r#"[{"Pattern":"*.example.com"},{"Pattern":"localhost:*","AllowInsecure":true}]"#;
        let rules = AddressRules::parse(rules).unwrap();
        let check = |url: &str, ok: bool| assert_eq!(rules.check(url).is_ok(), ok, "{url}");
        check("temporal://system", true);
        check("temporal://system/x", false);
        check("https://a.example.com/x", true);
        check("http://a.example.com/x", false);
        check("http://localhost:80/x", true);
        check("http://a.example.com@localhost:80/x", true);
        check("https://localhost:80@evil/x", false);
        check("ftp://localhost:80", false);
        check("https:///x", false);
        check("/x", false);
        assert!(AddressRules::parse("").unwrap().check("https://a.example.com").is_err());
        assert!(AddressRules::parse(r#"[{"pattern":"x"}]"#).is_err());
    }
}
