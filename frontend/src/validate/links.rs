//! Links between things, attached to requests.

use perdure_proto::{
    Error,
    temporal::api::{
        common::v1::{
            Callback, Link,
            link::{Variant, workflow_event::Reference},
        },
        enums::v1::EventType,
    },
};
use prost::Message;

const MOST_LINKS: usize = 10;
const LARGEST_LINK_BYTES: usize = 4_000;

/// Links of a request and of its callbacks.
pub(crate) fn links(links: &[Link], callbacks: &[Callback]) -> Result<(), Error> {
    let count = links.len() + callbacks.iter().map(|c| c.links.len()).sum::<usize>();
    if count > MOST_LINKS {
        return Err(Error::invalid_argument(format!(
            "cannot attach more than {MOST_LINKS} links per request, got {count}"
        )));
    }
    links.iter().chain(callbacks.iter().flat_map(|c| &c.links)).try_for_each(one)
}

fn one(link: &Link) -> Result<(), Error> {
    let bytes = link.encoded_len();
    if bytes > LARGEST_LINK_BYTES {
        return Err(Error::invalid_argument(format!("link exceeds allowed size of {LARGEST_LINK_BYTES}, got {bytes}")));
    }
    match &link.variant {
        Some(Variant::WorkflowEvent(to)) => {
            filled("workflow event", [("namespace field", &to.namespace), ("workflow ID field", &to.workflow_id)])?;
            filled("workflow event", [("run ID field", &to.run_id)])?;
            if let Some(Reference::EventRef(event)) = &to.reference
                && event.event_type == EventType::Unspecified as i32
                && event.event_id != 0
            {
                return Err(Error::invalid_argument(
                    "workflow event link ref cannot have an unspecified event type and a non-zero event ID",
                ));
            }
            Ok(())
        }
        Some(Variant::BatchJob(to)) => filled("batch job", [("job ID", &to.job_id)]),
        Some(Variant::NexusOperation(to)) => filled(
            "nexus operation",
            [
                ("namespace field", &to.namespace),
                ("operation ID field", &to.operation_id),
                ("run ID field", &to.run_id),
            ],
        ),
        Some(Variant::Activity(to)) => filled(
            "activity",
            [("namespace field", &to.namespace), ("activity ID field", &to.activity_id), ("run ID field", &to.run_id)],
        ),
        Some(Variant::Workflow(to)) => filled(
            "workflow",
            [("namespace field", &to.namespace), ("workflow ID field", &to.workflow_id), ("run ID field", &to.run_id)],
        ),
        Some(Variant::Callback(_)) | None => Err(Error::invalid_argument("unsupported link variant")),
    }
}

fn filled<const N: usize>(kind: &str, fields: [(&str, &String); N]) -> Result<(), Error> {
    match fields.iter().find(|(_, value)| value.is_empty()) {
        Some((field, _)) => Err(Error::invalid_argument(format!("{kind} link must not have an empty {field}"))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use perdure_proto::temporal::api::common::v1::link;

    use super::*;

    fn event_link(namespace: &str, workflow_id: &str, run_id: &str) -> Link {
        Link {
            variant: Some(Variant::WorkflowEvent(link::WorkflowEvent {
                namespace: namespace.into(),
                workflow_id: workflow_id.into(),
                run_id: run_id.into(),
                reference: None,
            })),
        }
    }

    #[test]
    fn each_field_is_needed() {
        let check = |link: Link, expect: Result<(), &str>| {
            assert_eq!(links(&[link], &[]).map_err(|e| e.message), expect.map_err(str::to_owned));
        };
        check(event_link("n", "w", "r"), Ok(()));
        check(event_link("", "w", "r"), Err("workflow event link must not have an empty namespace field"));
        check(event_link("n", "", "r"), Err("workflow event link must not have an empty workflow ID field"));
        check(event_link("n", "w", ""), Err("workflow event link must not have an empty run ID field"));
        check(Link { variant: None }, Err("unsupported link variant"));
        check(event_link("n", &"w".repeat(4_000), "r"), Err("link exceeds allowed size of 4000, got 4012"));
    }

    #[test]
    fn ten_at_most() {
        let link = event_link("n", "w", "r");
        assert!(links(&vec![link.clone(); 10], &[]).is_ok());
        assert_eq!(
            links(&vec![link; 11], &[]).expect_err("too many").message,
            "cannot attach more than 10 links per request, got 11"
        );
    }
}
