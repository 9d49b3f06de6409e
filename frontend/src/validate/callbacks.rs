//! Completion callbacks that a request attaches.

use perdure_nexus::AddressRules;
use perdure_proto::{
    Error,
    temporal::api::common::v1::{Callback, callback::Variant},
};
use perdure_types::Limits;

/// The address of what this cluster itself does.
const SYSTEM_URL: &str = "temporal://system";

/// Checks them; names of headers are the same in any case, and are kept in small letters.
pub(crate) fn completion_callbacks(callbacks: &mut [Callback], limits: &Limits) -> Result<(), Error> {
    let most = limits.callbacks_per_workflow;
    if callbacks.len() as i64 > most {
        return Err(Error::invalid_argument(format!("cannot attach more than {most} callbacks to an execution")));
    }
    for callback in callbacks {
        let Some(Variant::Nexus(nexus)) = &mut callback.variant else {
            return Err(Error::unimplemented("completion callbacks other than Nexus callbacks"));
        };
        let longest = limits.callback_url_length;
        if nexus.url.len() as i64 > longest {
            return Err(Error::invalid_argument(format!(
                "invalid url: url length longer than max length allowed of {longest}"
            )));
        }
        url(&nexus.url)?;
        let rules = AddressRules::parse(&limits.callback_addresses).map_err(Error::internal)?;
        rules.check(&nexus.url).map_err(Error::invalid_argument)?;
        let bytes: usize = nexus.header.iter().map(|(name, value)| name.len() + value.len()).sum();
        let most = limits.callback_header_size_bytes;
        if bytes as i64 > most {
            return Err(Error::invalid_argument(format!(
                "invalid header: header size longer than max allowed size of {most}"
            )));
        }
        nexus.header = nexus.header.drain().map(|(name, value)| (name.to_lowercase(), value)).collect();
    }
    Ok(())
}

fn url(url: &str) -> Result<(), Error> {
    if url == SYSTEM_URL {
        return Ok(());
    }
    let Some(rest) = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://")) else {
        return Err(Error::invalid_argument(format!("invalid url: unknown scheme: {url}")));
    };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let host = authority.rsplit('@').next().unwrap_or_default();
    if host.is_empty() || host.starts_with(':') {
        return Err(Error::invalid_argument(format!("invalid url: missing host: {url}")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use perdure_proto::temporal::api::common::v1::callback;

    use super::*;

    fn nexus(url: &str, header: &[(&str, &str)]) -> Callback {
        let header: HashMap<String, String> =
            header.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        Callback { variant: Some(Variant::Nexus(callback::Nexus { url: url.into(), header })), ..Callback::default() }
    }

    #[test]
    fn addresses() {
        let check = |url: &str, expect: Result<(), &str>| {
            let anywhere = r#"[{"Pattern":"*","AllowInsecure":true}]"#.to_owned();
            let limits = Limits { callback_addresses: anywhere, ..Limits::default() };
            let got = completion_callbacks(&mut [nexus(url, &[])], &limits);
            assert_eq!(got.map_err(|e| e.message), expect.map_err(str::to_owned));
        };
        check("temporal://system", Ok(()));
        check("http://localhost:80/a", Ok(()));
        check("https://example.com", Ok(()));
        check("temporal://other", Err("invalid url: unknown scheme: temporal://other"));
        check("http://:80/a", Err("invalid url: missing host: http://:80/a"));
        check("https:///a", Err("invalid url: missing host: https:///a"));
        let long = format!("http://{}", "a".repeat(1000));
        check(&long, Err("invalid url: url length longer than max length allowed of 1000"));
        let refused = completion_callbacks(&mut [nexus("http://localhost:80/a", &[])], &Limits::default()).unwrap_err();
        let reason = "invalid url: url does not match any configured callback address: http://localhost:80/a";
        assert_eq!(refused.message, reason);
    }

    #[test]
    fn headers_and_counts() {
        let limits = Limits::default();
        let mut one = [nexus(SYSTEM_URL, &[("Temporal-Callback-Token", "T")])];
        completion_callbacks(&mut one, &limits).unwrap();
        assert_eq!(one, [nexus(SYSTEM_URL, &[("temporal-callback-token", "T")])]);

        let large = "v".repeat(9000);
        let error = completion_callbacks(&mut [nexus(SYSTEM_URL, &[("a", &large)])], &limits).unwrap_err();
        assert_eq!(error.message, "invalid header: header size longer than max allowed size of 8192");

        let error = completion_callbacks(&mut vec![nexus(SYSTEM_URL, &[]); 33], &limits).unwrap_err();
        assert_eq!(error.message, "cannot attach more than 32 callbacks to an execution");

        let error = completion_callbacks(&mut [Callback::default()], &limits).unwrap_err();
        assert_eq!(error.grpc_code(), perdure_proto::Code::Unimplemented);
    }
}
