//! Where the frontend's new ids come from.

use uuid::Uuid;

/// A new unique id: of a namespace, or of a request or update whose client gave it none.
#[allow(clippy::disallowed_methods)] // The one place in this crate; nothing that is replayed depends on it.
pub(crate) fn new_id() -> String {
    Uuid::new_v4().to_string()
}
