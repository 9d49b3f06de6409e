// Package e2e drives a running server with the official Go SDK.
//
// PERDURE_ADDRESS is the server's address (127.0.0.1:7233 if unset). The tests hold for any Temporal-compatible server; with
// PERDURE_STRICT=1 they also check what Perdure promises beyond that.
package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	enumspb "go.temporal.io/api/enums/v1"
	historypb "go.temporal.io/api/history/v1"
	"go.temporal.io/api/workflowservice/v1"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/worker"
	"go.temporal.io/sdk/workflow"
)

const testTimeout = 60 * time.Second

// The client that all tests share.
var shared client.Client

type quietLogger struct{}

func (quietLogger) Debug(string, ...any) {}
func (quietLogger) Info(string, ...any)  {}
func (quietLogger) Warn(string, ...any)  {}
func (quietLogger) Error(string, ...any) {}

func TestMain(m *testing.M) {
	address := os.Getenv("PERDURE_ADDRESS")
	if address == "" {
		address = client.DefaultHostPort
	}
	var err error
	shared, err = connect(address)
	if err != nil {
		fmt.Fprintf(os.Stderr, "no server at %s: %v\n", address, err)
		os.Exit(1)
	}
	code := m.Run()
	shared.Close()
	os.Exit(code)
}

// connect waits until the server serves the default namespace: a test server may just have been started.
func connect(address string) (client.Client, error) {
	deadline := time.Now().Add(30 * time.Second)
	for {
		c, err := client.Dial(client.Options{HostPort: address, Logger: quietLogger{}})
		if err == nil {
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			_, err = c.WorkflowService().DescribeNamespace(ctx, &workflowservice.DescribeNamespaceRequest{Namespace: client.DefaultNamespace})
			cancel()
			if err == nil {
				return c, nil
			}
			c.Close()
		}
		if time.Now().After(deadline) {
			return nil, err
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// env is what one test uses: a task queue of its own, and a deadline.
type env struct {
	*testing.T
	context.Context
	client.Client
	queue string
}

func setup(t *testing.T) *env {
	t.Parallel()
	ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
	t.Cleanup(cancel)
	return &env{T: t, Context: ctx, Client: shared, queue: t.Name() + "-" + uuid.NewString()[:8]}
}

// worker starts a worker for functions: workflows have a workflow.Context as their first parameter.
func (e *env) worker(workflows []any, activities ...any) worker.Worker {
	w := worker.New(e.Client, e.queue, worker.Options{WorkerStopTimeout: time.Second})
	for _, function := range workflows {
		w.RegisterWorkflow(function)
	}
	for _, function := range activities {
		w.RegisterActivity(function)
	}
	require.NoError(e.T, w.Start())
	e.Cleanup(w.Stop)
	return w
}

func (e *env) options() client.StartWorkflowOptions {
	return client.StartWorkflowOptions{ID: e.queue + "-" + uuid.NewString()[:8], TaskQueue: e.queue}
}

func (e *env) start(workflow any, arguments ...any) client.WorkflowRun {
	e.Helper()
	return e.startWith(e.options(), workflow, arguments...)
}

func (e *env) startWith(options client.StartWorkflowOptions, workflow any, arguments ...any) client.WorkflowRun {
	e.Helper()
	run, err := e.ExecuteWorkflow(e.Context, options, workflow, arguments...)
	require.NoError(e.T, err)
	return run
}

// result waits for the workflow's end and fails the test if it is not a success.
func result[T any](e *env, run client.WorkflowRun) T {
	e.Helper()
	var value T
	require.NoError(e.T, run.Get(e.Context, &value))
	return value
}

// history returns a run's events, and checks that their ids are contiguous and (strict) that their times never go back.
func (e *env) history(run client.WorkflowRun) []*historypb.HistoryEvent {
	e.Helper()
	return e.historyOf(run.GetID(), run.GetRunID())
}

func (e *env) historyOf(workflowID, runID string) []*historypb.HistoryEvent {
	e.Helper()
	iterator := e.GetWorkflowHistory(e.Context, workflowID, runID, false, enumspb.HISTORY_EVENT_FILTER_TYPE_ALL_EVENT)
	var events []*historypb.HistoryEvent
	for iterator.HasNext() {
		event, err := iterator.Next()
		require.NoError(e.T, err)
		require.EqualValues(e.T, len(events)+1, event.EventId, "event ids are contiguous")
		if len(events) > 0 && os.Getenv("PERDURE_STRICT") == "1" {
			last := events[len(events)-1].EventTime.AsTime()
			require.False(e.T, event.EventTime.AsTime().Before(last), "event %d is older than the one before", event.EventId)
		}
		events = append(events, event)
	}
	return events
}

// names lists the events' types, without the workflow tasks, whose number depends on timing.
func names(events []*historypb.HistoryEvent) []string {
	var list []string
	for _, event := range events {
		if name := event.EventType.String(); !strings.HasPrefix(name, "WorkflowTask") {
			list = append(list, name)
		}
	}
	return list
}

// only returns the events of one type.
func only(events []*historypb.HistoryEvent, wanted enumspb.EventType) []*historypb.HistoryEvent {
	var list []*historypb.HistoryEvent
	for _, event := range events {
		if event.EventType == wanted {
			list = append(list, event)
		}
	}
	return list
}

// eventually polls a condition until it is true.
func (e *env) eventually(what string, condition func() bool) {
	e.Helper()
	for !condition() {
		select {
		case <-e.Context.Done():
			require.FailNow(e.T, "gave up waiting until "+what)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// quick gives activities short timeouts and retries without delay.
func quick(ctx workflow.Context) workflow.Context {
	return workflow.WithActivityOptions(ctx, workflow.ActivityOptions{
		StartToCloseTimeout: 20 * time.Second,
		RetryPolicy:         &temporal.RetryPolicy{InitialInterval: time.Millisecond, BackoffCoefficient: 1},
	})
}

// applicationError finds the application error at the root of a failure.
func applicationError(t *testing.T, err error) *temporal.ApplicationError {
	t.Helper()
	var failure *temporal.ApplicationError
	require.True(t, errors.As(err, &failure), "%v", err)
	return failure
}

// received takes one value from a channel, or fails at the test's deadline.
func received[T any](e *env, from <-chan T) T {
	e.Helper()
	select {
	case value := <-from:
		return value
	case <-e.Context.Done():
		require.FailNow(e.T, "gave up waiting for a value")
		panic("unreachable")
	}
}
