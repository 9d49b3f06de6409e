//! Members, the ring, and shards: who serves them, and what they have to do.

use axum::{
    extract::{RawQuery, State},
    http::HeaderMap,
    response::Response,
};
use maud::{Markup, html};
use perdure_proto::perdure::node::v1::{MemberInfo, MembersResponse, ShardInfo, ShardsResponse};

use crate::{
    Site,
    format::{ago, number, span},
    page::{self, Page, Parameters, Place, link, part, problem},
    ring::{colour, ring},
};

/// Shards of one page.
const SHARDS_A_PAGE: usize = 256;

pub async fn show(State(site): State<Site>, headers: HeaderMap, RawQuery(query): RawQuery) -> Response {
    let ask = site.asker(&headers);
    let members = match ask.members().await {
        Ok(members) => members,
        Err(status) => return page::refused(&status),
    };
    let shards = ask.shards().await;
    let from = Parameters::of(query.as_deref()).get("from").parse().unwrap_or(0);
    let content = html! {
        h1 { "Cluster" }
        (part("cluster", &match &shards {
            Ok(shards) => overview(&members, shards, ask.now()),
            Err(status) => html! { (problem(status.message())) (overview(&members, &ShardsResponse::default(), ask.now())) },
        }))
        @if let Ok(shards) = &shards { (part("shards", &shard_table(&members, shards, from))) }
    };
    Page { place: Place::Cluster, title: "Cluster", namespace: None, live: true }.with(&content)
}

fn names(members: &MembersResponse) -> impl Iterator<Item = &str> + Clone {
    members.members.iter().map(|member| member.node.as_str())
}

fn overview(members: &MembersResponse, shards: &ShardsResponse, now: i64) -> Markup {
    let done = shards.shards.iter().filter(|shard| shard.slots >= shards.goal).count();
    html! {
        div.overview {
            (ring(&shards.shards, names(members)))
            div.scroll {
                table.list.members {
                    thead {
                        tr {
                            th { "Member" } th { "State" } th.num { "Shards" } th.num { "Commit" } th.num.wide { "Waiting" }
                            th.wide { "Clients" } th.num.wide { "Up" } th.num.wide { "Clock" } th.wide { "Version" }
                        }
                    }
                    tbody { @for member in &members.members { (member_row(members, member, shards, now)) } }
                }
            }
        }
        p.note {
            "Cluster " code { (members.cluster_id) } ", as " code { (members.node) } " sees it."
            @if shards.goal > shards.slots {
                " Shards are being split: " (done) " of " (shards.goal) " are done."
            }
        }
    }
}

fn member_row(members: &MembersResponse, member: &MemberInfo, shards: &ShardsResponse, now: i64) -> Markup {
    let class = match member.state.as_str() {
        "alive" => "ok",
        "draining" => "warn",
        _ => "bad",
    };
    let statuses =
        || shards.shards.iter().filter(|shard| shard.served_by == member.node).filter_map(|s| s.status.as_ref());
    let latencies: Vec<u64> = statuses().map(|status| status.commit_latency_ns).filter(|ns| *ns > 0).collect();
    let commit = latencies.iter().sum::<u64>().checked_div(latencies.len() as u64);
    let waiting: u64 = statuses().map(|status| status.waiting + status.uncommitted).sum();
    let clock = member.clock_offset_ns;
    html! {
        tr {
            td.node { span.dot.(colour(names(members), &member.node)) {} (member.node) }
            td { span.badge.(class) { (member.state) } }
            td.num {
                (member.shards_served)
                @if member.shards_served != member.shards_wanted { span.dim { " of " (member.shards_wanted) } }
            }
            td.num { (commit.map_or_else(|| "–".to_owned(), |ns| span(i64::try_from(ns).unwrap_or(i64::MAX)))) }
            td.num.wide { (number(i64::try_from(waiting).unwrap_or(i64::MAX))) }
            td.wide { (member.frontend_address) }
            td.num.wide { (ago(Some(member.started_time_ns), now)) }
            td.num.wide {
                @if member.node == members.node { span.dim { "this one" } }
                @else { (if clock < 0 { "-" } else { "+" }) (span(clock.saturating_abs())) }
            }
            td.wide { (member.version) }
        }
    }
}

fn shard_table(members: &MembersResponse, shards: &ShardsResponse, from: usize) -> Markup {
    let total = shards.shards.len();
    let from = if from < total { from } else { 0 };
    let shown = shards.shards.iter().skip(from).take(SHARDS_A_PAGE);
    let until = (from + SHARDS_A_PAGE).min(total);
    html! {
        h2 { "Shards" }
        div.scroll {
            table.list.shards {
                thead {
                    tr {
                        th.num { "Shard" } th { "Served by" } th.num.wide { "Epoch" } th.wide { "State" } th.num.wide { "In memory" }
                        th.num { "Waiting" } th.num.wide { "Uncommitted" } th.num { "Commit" }
                    }
                }
                tbody { @for shard in shown { (shard_row(members, shard)) } }
            }
        }
        @if total > SHARDS_A_PAGE {
            p.pages {
                @if from > 0 {
                    a href=(link("/cluster", &[("from", &from.saturating_sub(SHARDS_A_PAGE).to_string())])) { "Before" }
                }
                span { (from) " to " (until.saturating_sub(1)) " of " (total) }
                @if until < total { a href=(link("/cluster", &[("from", &until.to_string())])) { "Next" } }
            }
        }
        p.note {
            "Waiting: calls that the shard has not begun. Uncommitted: answers and effects held back until the log has them. \
             Commit: from sending a row of the log to its safety, smoothed."
        }
    }
}

fn shard_row(members: &MembersResponse, shard: &ShardInfo) -> Markup {
    let count = |count: u64| number(i64::try_from(count).unwrap_or(i64::MAX));
    let status = shard.status.as_ref().filter(|status| !status.ownership.is_empty());
    let none = || html! { span.dim { "–" } };
    html! {
        tr.alert[shard.served_by.is_empty()] {
            td.num { (shard.shard) }
            td.node {
                span.dot.(colour(names(members), &shard.served_by)) {}
                @if shard.served_by.is_empty() { b.bad { "nobody" } } @else { (shard.served_by) }
                @if shard.served_by != shard.wanted_by && !shard.wanted_by.is_empty() {
                    span.dim { " moves to " (shard.wanted_by) }
                }
            }
            td.num.wide { (count(shard.epoch)) }
            @if let Some(status) = status {
                td.wide { (status.ownership) }
                td.num.wide { (count(status.loaded)) }
                td.num { (count(status.waiting)) }
                td.num.wide { (count(status.uncommitted)) }
                td.num {
                    @if status.commit_latency_ns > 0 { (span(i64::try_from(status.commit_latency_ns).unwrap_or(i64::MAX))) }
                    @else { (none()) }
                }
            } @else {
                td.wide { (none()) } td.num.wide { (none()) } td.num { (none()) } td.num.wide { (none()) } td.num { (none()) }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use perdure_proto::perdure::node::v1::ShardStatus;

    use super::*;

    fn members() -> MembersResponse {
        let member = |node: &str, state: &str| MemberInfo {
            node: node.into(),
            state: state.into(),
            shards_served: 1,
            shards_wanted: 2,
            ..MemberInfo::default()
        };
        MembersResponse {
            cluster_id: "c".into(),
            slots: 4,
            node: "a".into(),
            members: vec![member("a", "alive"), member("<b>", "silent")],
        }
    }

    #[test]
    fn a_cluster_of_nothing_is_a_page_too() {
        let (members, shards) = (MembersResponse::default(), ShardsResponse::default());
        let text = overview(&members, &shards, 0).into_string() + &shard_table(&members, &shards, 7).into_string();
        assert!(text.contains("0 shards"), "{text}");
    }

    #[test]
    fn a_shard_that_nobody_serves_stands_out() {
        let status =
            ShardStatus { ownership: "serving".into(), commit_latency_ns: 1_500_000, ..ShardStatus::default() };
        let shards = vec![
            ShardInfo {
                shard: 0,
                served_by: "a".into(),
                wanted_by: "<b>".into(),
                status: Some(status),
                ..ShardInfo::default()
            },
            ShardInfo { shard: 1, wanted_by: "a".into(), ..ShardInfo::default() },
        ];
        let shards = ShardsResponse { shards, slots: 2, goal: 2 };
        let text = shard_table(&members(), &shards, 0).into_string();
        assert_eq!(text.matches("class=\"alert\"").count(), 1, "{text}");
        assert!(text.contains("moves to &lt;b&gt;") && text.contains("nobody") && text.contains("1.5 ms"), "{text}");
        let text = overview(&members(), &shards, 0).into_string();
        assert!(text.contains("1<span class=\"dim\"> of 2") && text.contains("badge bad"), "{text}");
    }

    #[test]
    fn many_shards_come_page_by_page() {
        let shards = (0..600).map(|shard| ShardInfo { shard, ..ShardInfo::default() }).collect();
        let shards = ShardsResponse { shards, slots: 600, goal: 600 };
        let text = |from| shard_table(&members(), &shards, from).into_string();
        assert!(text(0).contains("0 to 255 of 600") && text(512).contains("512 to 599 of 600"));
        assert!(text(512).contains("from=256"));
    }
}
