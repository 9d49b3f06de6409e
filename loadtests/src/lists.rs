//! Lists and counts over many runs: fills a namespace, and times the queries that people and tools wait for.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use hdrhistogram::Histogram;
use perdure_proto::temporal::api::common::v1::{Payload, SearchAttributes, WorkflowExecution, WorkflowType};
use perdure_proto::temporal::api::enums::v1::IndexedValueType;
use perdure_proto::temporal::api::operatorservice::v1::AddSearchAttributesRequest;
use perdure_proto::temporal::api::operatorservice::v1::operator_service_client::OperatorServiceClient;
use perdure_proto::temporal::api::taskqueue::v1::TaskQueue;
use perdure_proto::temporal::api::workflowservice::v1::{
    CountWorkflowExecutionsRequest, ListWorkflowExecutionsRequest, StartWorkflowExecutionRequest,
    TerminateWorkflowExecutionRequest,
};
use tokio::task::JoinSet;
use tonic::transport::Endpoint;

use crate::api::{Api, connect, with_timeout};
use crate::process::Usage;

/// The keyword attribute that is set on every run.
const KEYWORD: &str = "LoadKey";
/// Runs that share one value of it.
const RUNS_A_KEY: u64 = 20;
const TYPES: u64 = 10;
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Args)]
pub struct Options {
    /// Host and port of the server
    #[arg(long, default_value = "127.0.0.1:7233")]
    address: String,
    #[arg(long, default_value = "default")]
    namespace: String,
    /// Runs that are closed before the measurement
    #[arg(long, default_value_t = 200_000)]
    closed: u64,
    /// Runs that stay open
    #[arg(long, default_value_t = 10_000)]
    open: u64,
    /// Calls in flight while it fills
    #[arg(long, default_value_t = 64)]
    concurrency: usize,
    /// How often each query is asked
    #[arg(long, default_value_t = 200)]
    times: u64,
    /// Do not fill: an earlier call with the same figures has
    #[arg(long)]
    filled: bool,
    /// Processes whose memory is reported as the server's
    #[arg(long = "server-pid", value_delimiter = ',')]
    server_pids: Vec<u32>,
}

pub async fn run(options: &Options) -> Result<()> {
    let api = connect(&options.address, &options.namespace, Duration::from_secs(30)).await?;
    if !options.filled {
        register(options).await?;
        fill(&api, options).await?;
    }
    let total = options.closed + options.open;
    let keys = (total / RUNS_A_KEY).max(1);
    println!("{:<34} {:>8} {:>9} {:>9} {:>9} {:>8}", "query", "found", "p50 ms", "p99 ms", "max ms", "RSS MB");
    let by_type = |i: u64| format!("WorkflowType = 'Load{}' AND ExecutionStatus = 'Terminated'", i % TYPES);
    let by_key = |i: u64| format!("{KEYWORD} = 'key-{}'", i * 7 % keys);
    let by_id = |i: u64| format!("WorkflowId = 'list-{}'", i * 7919 % total);
    let rare = |_| "WorkflowType = 'Load3' AND ExecutionStatus = 'Failed'".to_owned();
    let lists: [(&str, &dyn Fn(u64) -> String); 6] = [
        ("first page", &|_| String::new()),
        ("first page by type and status", &by_type),
        ("first page of those running", &|_| "ExecutionStatus = 'Running'".to_owned()),
        ("by type and a status that none has", &rare),
        ("by a keyword of 20", &by_key),
        ("by workflow id", &by_id),
    ];
    for (name, query) in lists {
        measure(options, name, options.times, async |i| first_page(&api, query(i)).await).await?;
    }
    let grouped = "GROUP BY ExecutionStatus";
    measure(options, "count by status", options.times, async |_| count(&api, grouped.to_owned()).await).await?;
    measure(options, "count by type and status", options.times, async |i| count(&api, by_type(i)).await).await?;
    measure(options, "all pages of what no index serves", 3, async |_| all_pages(&api).await).await?;
    Ok(())
}

async fn measure(options: &Options, name: &str, times: u64, query: impl AsyncFn(u64) -> Result<u64>) -> Result<()> {
    let mut histogram = Histogram::<u64>::new(3)?;
    let mut found = 0;
    for i in 0..times {
        let begun = Instant::now();
        found = query(i).await.with_context(|| name.to_owned())?;
        histogram.record(begun.elapsed().as_micros() as u64)?;
    }
    let ms = |micros: u64| micros as f64 / 1e3;
    let rss = if options.server_pids.is_empty() { 0 } else { Usage::of(&options.server_pids)?.rss_bytes };
    println!(
        "{name:<34} {found:>8} {:>9.2} {:>9.2} {:>9.2} {:>8.1}",
        ms(histogram.value_at_quantile(0.5)),
        ms(histogram.value_at_quantile(0.99)),
        ms(histogram.max()),
        rss as f64 / 1e6
    );
    Ok(())
}

async fn first_page(api: &Api, query: String) -> Result<u64> {
    let request =
        ListWorkflowExecutionsRequest { namespace: api.namespace(), query, page_size: 100, ..Default::default() };
    let page = api.client.clone().list_workflow_executions(with_timeout(request, PATIENCE)).await?.into_inner();
    Ok(page.executions.len() as u64)
}

async fn count(api: &Api, query: String) -> Result<u64> {
    let request = CountWorkflowExecutionsRequest { namespace: api.namespace(), query };
    Ok(api.client.clone().count_workflow_executions(with_timeout(request, PATIENCE)).await?.into_inner().count as u64)
}

/// A filter that admits nothing, and that only the rows themselves can answer. Gives the number of pages.
async fn all_pages(api: &Api) -> Result<u64> {
    let mut next_page_token = bytes::Bytes::new();
    let mut pages = 0;
    loop {
        let request = ListWorkflowExecutionsRequest {
            namespace: api.namespace(),
            query: "HistoryLength > 1000".to_owned(),
            page_size: 100,
            next_page_token,
        };
        let page = api.client.clone().list_workflow_executions(with_timeout(request, PATIENCE)).await?.into_inner();
        pages += 1;
        if page.next_page_token.is_empty() {
            return Ok(pages);
        }
        next_page_token = page.next_page_token;
    }
}

async fn register(options: &Options) -> Result<()> {
    let channel = Endpoint::from_shared(format!("http://{}", options.address))?.connect_lazy();
    let request = AddSearchAttributesRequest {
        namespace: options.namespace.clone(),
        search_attributes: [(KEYWORD.to_owned(), IndexedValueType::Keyword as i32)].into(),
    };
    OperatorServiceClient::new(channel).add_search_attributes(request).await.context("the attribute is not added")?;
    Ok(())
}

async fn fill(api: &Api, options: &Options) -> Result<()> {
    let (closed, total) = (options.closed, options.closed + options.open);
    let next = Arc::new(AtomicU64::new(0));
    let begun = Instant::now();
    let mut slots: JoinSet<Result<()>> = JoinSet::new();
    for _ in 0..options.concurrency.max(1) {
        let (api, next) = (api.clone(), next.clone());
        slots.spawn(async move {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= total {
                    return Ok(());
                }
                start(&api, number, total).await?;
                if number < closed {
                    terminate(&api, number).await?;
                }
            }
        });
    }
    while let Some(slot) = slots.join_next().await {
        slot.context("a slot panicked")??;
    }
    println!("{total} runs in {:.0} s", begun.elapsed().as_secs_f64());
    let deadline = Instant::now() + PATIENCE;
    while count(api, String::new()).await? < total {
        ensure!(Instant::now() < deadline, "not all runs are listed");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

async fn start(api: &Api, number: u64, total: u64) -> Result<()> {
    let keys = (total / RUNS_A_KEY).max(1);
    let key = Payload {
        metadata: HashMap::from([("encoding".to_owned(), bytes::Bytes::from_static(b"json/plain"))]),
        data: format!("\"key-{}\"", number % keys).into(),
        ..Default::default()
    };
    let request = StartWorkflowExecutionRequest {
        namespace: api.namespace(),
        workflow_id: format!("list-{number}"),
        workflow_type: Some(WorkflowType { name: format!("Load{}", number % TYPES) }),
        task_queue: Some(TaskQueue { name: "nobody".to_owned(), ..Default::default() }),
        request_id: format!("list-{number}"),
        search_attributes: Some(SearchAttributes { indexed_fields: HashMap::from([(KEYWORD.to_owned(), key)]) }),
        ..Default::default()
    };
    api.client.clone().start_workflow_execution(with_timeout(request, PATIENCE)).await?;
    Ok(())
}

async fn terminate(api: &Api, number: u64) -> Result<()> {
    let request = TerminateWorkflowExecutionRequest {
        namespace: api.namespace(),
        workflow_execution: Some(WorkflowExecution { workflow_id: format!("list-{number}"), run_id: String::new() }),
        ..Default::default()
    };
    api.client.clone().terminate_workflow_execution(with_timeout(request, PATIENCE)).await?;
    Ok(())
}
