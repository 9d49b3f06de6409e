//! Names that Nexus gives a meaning here.

/// Among the search attributes of a row in the list of Nexus operations that no workflow has scheduled: what lists know of
/// them beside what they know of all rows. Users have other names for these.
pub const ENDPOINT_ATTRIBUTE: &str = "TemporalNexusEndpoint";
pub const SERVICE_ATTRIBUTE: &str = "TemporalNexusService";
pub const REQUEST_ID_ATTRIBUTE: &str = "TemporalNexusRequestId";

/// Headers that the server sets itself.
pub const RESERVED_HEADERS: [&str; 9] = [
    "request-timeout",
    "xdc-redirection",
    "xdc-redirection-api",
    "xdc-redirection-source-cell",
    "caller-name",
    "caller-type",
    "call-initiation",
    "temporal-principal-type",
    "temporal-principal-name",
];
