package e2e

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/workflow"
)

func TestActivityIsRetriedUntilItSucceeds(t *testing.T) {
	e := setup(t)
	flaky := func(ctx context.Context, name string) (string, error) {
		if attempt := activity.GetInfo(ctx).Attempt; attempt < 3 {
			return "", fmt.Errorf("attempt %d fails", attempt)
		}
		return "hello " + name, nil
	}
	greet := func(ctx workflow.Context, name string) (greeting string, err error) {
		err = workflow.ExecuteActivity(quick(ctx), flaky, name).Get(ctx, &greeting)
		return
	}
	e.worker([]any{greet}, flaky)

	run := e.start(greet, "ada")
	require.Equal(t, "hello ada", result[string](e, run))

	events := e.history(run)
	require.Equal(t, []string{
		"WorkflowExecutionStarted", "ActivityTaskScheduled", "ActivityTaskStarted", "ActivityTaskCompleted",
		"WorkflowExecutionCompleted",
	}, names(events), "attempts that failed leave no events")
	started := only(events, enumspb.EVENT_TYPE_ACTIVITY_TASK_STARTED)[0].GetActivityTaskStartedEventAttributes()
	require.EqualValues(t, 3, started.Attempt)
	require.Equal(t, "attempt 2 fails", started.LastFailure.Message)
}

func TestFailuresThatEndRetries(t *testing.T) {
	e := setup(t)
	var attempts atomic.Int32
	failing := func(_ context.Context, kind string) error {
		attempts.Add(1)
		return temporal.NewApplicationErrorWithOptions("no", kind, temporal.ApplicationErrorOptions{
			NonRetryable: kind == "Final",
			Details:      []any{42},
		})
	}
	try := func(ctx workflow.Context, kind string) error {
		ctx = workflow.WithActivityOptions(ctx, workflow.ActivityOptions{
			StartToCloseTimeout: time.Minute,
			RetryPolicy: &temporal.RetryPolicy{
				InitialInterval:        time.Millisecond,
				MaximumAttempts:        4,
				NonRetryableErrorTypes: []string{"Listed"},
			},
		})
		return workflow.ExecuteActivity(ctx, failing, kind).Get(ctx, nil)
	}
	e.worker([]any{try}, failing)

	for _, c := range []struct {
		kind     string
		attempts int32
		state    enumspb.RetryState
	}{
		{"Final", 1, enumspb.RETRY_STATE_NON_RETRYABLE_FAILURE},
		{"Listed", 1, enumspb.RETRY_STATE_NON_RETRYABLE_FAILURE},
		{"Other", 4, enumspb.RETRY_STATE_MAXIMUM_ATTEMPTS_REACHED},
	} {
		attempts.Store(0)
		run := e.start(try, c.kind)
		err := run.Get(e.Context, nil)
		failure := applicationError(t, err)
		var detail int
		require.NoError(t, failure.Details(&detail))
		require.Equal(t, 42, detail)
		require.Equal(t, c.kind, failure.Type())
		require.Equal(t, c.attempts, attempts.Load(), c.kind)
		failed := only(e.history(run), enumspb.EVENT_TYPE_ACTIVITY_TASK_FAILED)[0].GetActivityTaskFailedEventAttributes()
		require.Equal(t, c.state, failed.RetryState, c.kind)
	}
}

func TestHeartbeatTimeoutAndResume(t *testing.T) {
	e := setup(t)
	chunks := func(ctx context.Context) (from int, err error) {
		if activity.HasHeartbeatDetails(ctx) {
			err = activity.GetHeartbeatDetails(ctx, &from)
			return
		}
		// The first attempt reports seven chunks, and is then heard of no more.
		activity.RecordHeartbeat(ctx, 7)
		<-ctx.Done()
		return 0, ctx.Err()
	}
	process := func(ctx workflow.Context) (from int, err error) {
		ctx = workflow.WithActivityOptions(ctx, workflow.ActivityOptions{
			StartToCloseTimeout: time.Minute,
			HeartbeatTimeout:    time.Second,
			RetryPolicy:         &temporal.RetryPolicy{InitialInterval: time.Millisecond},
		})
		err = workflow.ExecuteActivity(ctx, chunks).Get(ctx, &from)
		return
	}
	e.worker([]any{process}, chunks)

	run := e.start(process)
	require.Equal(t, 7, result[int](e, run))
	started := only(e.history(run), enumspb.EVENT_TYPE_ACTIVITY_TASK_STARTED)[0].GetActivityTaskStartedEventAttributes()
	require.EqualValues(t, 2, started.Attempt)
	require.Equal(t, enumspb.TIMEOUT_TYPE_HEARTBEAT, started.LastFailure.GetTimeoutFailureInfo().GetTimeoutType())
}

func TestActivityTimeouts(t *testing.T) {
	e := setup(t)
	release := make(chan struct{})
	slow := func(context.Context) error { <-release; return nil }
	waiting := func(ctx workflow.Context, options workflow.ActivityOptions) error {
		options.RetryPolicy = &temporal.RetryPolicy{MaximumAttempts: 1}
		return workflow.ExecuteActivity(workflow.WithActivityOptions(ctx, options), slow).Get(ctx, nil)
	}
	e.worker([]any{waiting}, slow)
	t.Cleanup(func() { close(release) })

	for expected, options := range map[enumspb.TimeoutType]workflow.ActivityOptions{
		enumspb.TIMEOUT_TYPE_START_TO_CLOSE: {StartToCloseTimeout: time.Second},
		enumspb.TIMEOUT_TYPE_SCHEDULE_TO_START: {
			ScheduleToStartTimeout: time.Second, StartToCloseTimeout: time.Minute, TaskQueue: e.queue + "-nobody",
		},
		enumspb.TIMEOUT_TYPE_SCHEDULE_TO_CLOSE: {ScheduleToCloseTimeout: time.Second},
	} {
		err := e.start(waiting, options).Get(e.Context, nil)
		var timeout *temporal.TimeoutError
		require.True(t, errors.As(err, &timeout), "%v", err)
		require.Equal(t, expected, timeout.TimeoutType())
	}
}

func TestCompletionByTokenAndByID(t *testing.T) {
	e := setup(t)
	tokens := make(chan []byte, 1)
	ids := make(chan string, 1)
	byToken := func(ctx context.Context) (string, error) {
		tokens <- activity.GetInfo(ctx).TaskToken
		return "", activity.ErrResultPending
	}
	byID := func(ctx context.Context) (string, error) {
		ids <- activity.GetInfo(ctx).ActivityID
		return "", activity.ErrResultPending
	}
	both := func(ctx workflow.Context) (results []string, err error) {
		first, second := workflow.ExecuteActivity(quick(ctx), byToken), workflow.ExecuteActivity(quick(ctx), byID)
		results = make([]string, 2)
		if err = first.Get(ctx, &results[0]); err == nil {
			err = second.Get(ctx, &results[1])
		}
		return
	}
	e.worker([]any{both}, byToken, byID)

	run := e.start(both)
	token := received(e, tokens)
	require.NoError(t, e.CompleteActivity(e.Context, token, "by token", nil))
	id := received(e, ids)
	require.NoError(t, e.CompleteActivityByID(e.Context, "default", run.GetID(), run.GetRunID(), id, "by id", nil))
	require.Equal(t, []string{"by token", "by id"}, result[[]string](e, run))
	require.Error(t, e.CompleteActivity(e.Context, token, "again", nil), "a result is accepted once")
}

func TestLocalActivities(t *testing.T) {
	e := setup(t)
	var calls atomic.Int32
	double := func(_ context.Context, n int) (int, error) {
		if calls.Add(1) == 1 {
			return 0, errors.New("the first call fails")
		}
		return 2 * n, nil
	}
	compute := func(ctx workflow.Context) (sum int, err error) {
		ctx = workflow.WithLocalActivityOptions(ctx, workflow.LocalActivityOptions{
			StartToCloseTimeout: 10 * time.Second,
			RetryPolicy:         &temporal.RetryPolicy{InitialInterval: time.Millisecond},
		})
		for n := range 3 {
			var doubled int
			if err = workflow.ExecuteLocalActivity(ctx, double, n).Get(ctx, &doubled); err != nil {
				return
			}
			sum += doubled
		}
		return
	}
	e.worker([]any{compute})

	run := e.start(compute)
	require.Equal(t, 6, result[int](e, run))
	events := e.history(run)
	require.Len(t, only(events, enumspb.EVENT_TYPE_MARKER_RECORDED), 3)
	require.Empty(t, only(events, enumspb.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED))
}

// A local activity that outlives the workflow task keeps it alive by asking for new ones.
func TestLongLocalActivity(t *testing.T) {
	e := setup(t)
	long := func(context.Context) error { time.Sleep(3 * time.Second); return nil }
	outlive := func(ctx workflow.Context) error {
		ctx = workflow.WithLocalActivityOptions(ctx, workflow.LocalActivityOptions{StartToCloseTimeout: 10 * time.Second})
		return workflow.ExecuteLocalActivity(ctx, long).Get(ctx, nil)
	}
	e.worker([]any{outlive})

	options := e.options()
	options.WorkflowTaskTimeout = 2 * time.Second
	run := e.startWith(options, outlive)
	require.NoError(t, run.Get(e.Context, nil))
	events := e.history(run)
	require.Empty(t, only(events, enumspb.EVENT_TYPE_WORKFLOW_TASK_TIMED_OUT))
	require.GreaterOrEqual(t, len(only(events, enumspb.EVENT_TYPE_WORKFLOW_TASK_COMPLETED)), 2)
}

func TestDescribeShowsPendingActivity(t *testing.T) {
	e := setup(t)
	release := make(chan struct{})
	blocked := func(ctx context.Context) error {
		if activity.GetInfo(ctx).Attempt == 1 {
			return errors.New("not yet")
		}
		activity.RecordHeartbeat(ctx, "waiting")
		<-release
		return nil
	}
	block := func(ctx workflow.Context) error { return workflow.ExecuteActivity(quick(ctx), blocked).Get(ctx, nil) }
	e.worker([]any{block}, blocked)

	run := e.start(block)
	e.eventually("the second attempt has sent its heartbeat", func() bool {
		description, err := e.DescribeWorkflowExecution(e.Context, run.GetID(), "")
		require.NoError(t, err)
		if len(description.PendingActivities) != 1 {
			return false
		}
		pending := description.PendingActivities[0]
		return pending.State == enumspb.PENDING_ACTIVITY_STATE_STARTED && pending.Attempt == 2 &&
			pending.LastFailure.GetMessage() == "not yet" && len(pending.HeartbeatDetails.GetPayloads()) == 1
	})
	close(release)
	require.NoError(t, run.Get(e.Context, nil))
	description, err := e.DescribeWorkflowExecution(e.Context, run.GetID(), "")
	require.NoError(t, err)
	require.Equal(t, enumspb.WORKFLOW_EXECUTION_STATUS_COMPLETED, description.WorkflowExecutionInfo.Status)
	require.Empty(t, description.PendingActivities)
}
