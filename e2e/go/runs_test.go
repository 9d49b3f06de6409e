package e2e

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/api/serviceerror"
	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/workflow"
)

func TestTimers(t *testing.T) {
	e := setup(t)
	race := func(ctx workflow.Context) (fired []string, err error) {
		never, cancel := workflow.WithCancel(ctx)
		long := workflow.NewTimer(never, time.Hour)
		selector := workflow.NewSelector(ctx)
		for name, delay := range []time.Duration{300 * time.Millisecond, 100 * time.Millisecond} {
			selector.AddFuture(workflow.NewTimer(ctx, delay), func(workflow.Future) {
				fired = append(fired, []string{"slow", "fast"}[name])
			})
		}
		selector.Select(ctx)
		selector.Select(ctx)
		cancel()
		var canceled *temporal.CanceledError
		if err = long.Get(ctx, nil); errors.As(err, &canceled) {
			fired, err = append(fired, "canceled"), nil
		}
		return
	}
	e.worker([]any{race})

	run := e.start(race)
	require.Equal(t, []string{"fast", "slow", "canceled"}, result[[]string](e, run))
	events := e.history(run)
	require.Len(t, only(events, enumspb.EVENT_TYPE_TIMER_STARTED), 3)
	require.Len(t, only(events, enumspb.EVENT_TYPE_TIMER_CANCELED), 1)
	fired := only(events, enumspb.EVENT_TYPE_TIMER_FIRED)
	require.Len(t, fired, 2)
	slow := fired[1].EventTime.AsTime().Sub(events[0].EventTime.AsTime())
	require.GreaterOrEqual(t, slow, 300*time.Millisecond)
}

func TestContinueAsNew(t *testing.T) {
	e := setup(t)
	var countdown func(workflow.Context, int) (string, error)
	countdown = func(ctx workflow.Context, n int) (string, error) {
		if n > 0 {
			return "", workflow.NewContinueAsNewError(ctx, "countdown", n-1)
		}
		return "lift-off", nil
	}
	w := e.worker(nil)
	w.RegisterWorkflowWithOptions(countdown, workflow.RegisterOptions{Name: "countdown"})

	options := e.options()
	options.Memo = map[string]any{"kept": true}
	run := e.startWith(options, "countdown", 3)
	first := run.GetRunID()
	require.Equal(t, "lift-off", result[string](e, run), "the client follows the chain")

	events := e.historyOf(run.GetID(), first)
	last := events[len(events)-1].GetWorkflowExecutionContinuedAsNewEventAttributes()
	require.NotNil(t, last)
	next := e.historyOf(run.GetID(), last.NewExecutionRunId)[0].GetWorkflowExecutionStartedEventAttributes()
	require.Equal(t, first, next.ContinuedExecutionRunId)
	require.Equal(t, first, next.FirstExecutionRunId)
	require.Contains(t, next.Memo.GetFields(), "kept")
}

func TestContinueAsNewIsSuggested(t *testing.T) {
	e := setup(t)
	grow := func(ctx workflow.Context) (suggested []bool, err error) {
		suggested = append(suggested, workflow.GetInfo(ctx).GetContinueAsNewSuggested())
		for range 4200 {
			workflow.SideEffect(ctx, func(workflow.Context) any { return 0 })
		}
		err = workflow.Sleep(ctx, time.Millisecond)
		suggested = append(suggested, workflow.GetInfo(ctx).GetContinueAsNewSuggested())
		return
	}
	e.worker([]any{grow})
	require.Equal(t, []bool{false, true}, result[[]bool](e, e.start(grow)))
}

func TestCancelReachesTheActivityAndCompensates(t *testing.T) {
	e := setup(t)
	begun := make(chan struct{}, 1)
	undone := make(chan string, 3)
	book := func(context.Context, string) error { return nil }
	undo := func(_ context.Context, what string) error { undone <- what; return nil }
	endless := func(ctx context.Context) error {
		begun <- struct{}{}
		for {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(50 * time.Millisecond):
				activity.RecordHeartbeat(ctx)
			}
		}
	}
	trip := func(ctx workflow.Context) (err error) {
		ctx = quick(ctx)
		for _, what := range []string{"car", "hotel"} {
			if err = workflow.ExecuteActivity(ctx, book, what).Get(ctx, nil); err != nil {
				return
			}
			defer func() {
				if err != nil {
					cleanup, _ := workflow.NewDisconnectedContext(ctx)
					_ = workflow.ExecuteActivity(cleanup, undo, what).Get(cleanup, nil)
				}
			}()
		}
		patient := workflow.WithActivityOptions(ctx, workflow.ActivityOptions{
			StartToCloseTimeout: time.Minute, HeartbeatTimeout: 2 * time.Second, WaitForCancellation: true,
		})
		return workflow.ExecuteActivity(patient, endless).Get(patient, nil)
	}
	e.worker([]any{trip}, book, undo, endless)

	run := e.start(trip)
	received(e, begun)
	require.NoError(t, e.CancelWorkflow(e.Context, run.GetID(), ""))
	var canceled *temporal.CanceledError
	err := run.Get(e.Context, nil)
	require.True(t, errors.As(err, &canceled), "%v", err)
	require.Equal(t, "hotel", received(e, undone))
	require.Equal(t, "car", received(e, undone))
	events := e.history(run)
	require.Len(t, only(events, enumspb.EVENT_TYPE_WORKFLOW_EXECUTION_CANCEL_REQUESTED), 1)
	require.Len(t, only(events, enumspb.EVENT_TYPE_ACTIVITY_TASK_CANCEL_REQUESTED), 1)
	require.Len(t, only(events, enumspb.EVENT_TYPE_ACTIVITY_TASK_CANCELED), 1)
}

func TestTerminate(t *testing.T) {
	e := setup(t)
	e.worker([]any{basket})
	run := e.start(basket)
	require.NoError(t, e.TerminateWorkflow(e.Context, run.GetID(), "", "enough", "detail"))
	var terminated *temporal.TerminatedError
	err := run.Get(e.Context, nil)
	require.True(t, errors.As(err, &terminated), "%v", err)
	events := e.history(run)
	require.Equal(t, "enough", events[len(events)-1].GetWorkflowExecutionTerminatedEventAttributes().Reason)
	var notFound *serviceerror.NotFound
	require.True(t, errors.As(e.TerminateWorkflow(e.Context, run.GetID(), "", "again"), &notFound))
}

func TestReusePolicies(t *testing.T) {
	e := setup(t)
	e.worker([]any{square})
	for _, c := range []struct {
		policy                  enumspb.WorkflowIdReusePolicy
		afterFailure, afterDone bool
	}{
		{enumspb.WORKFLOW_ID_REUSE_POLICY_ALLOW_DUPLICATE, true, true},
		{enumspb.WORKFLOW_ID_REUSE_POLICY_ALLOW_DUPLICATE_FAILED_ONLY, true, false},
		{enumspb.WORKFLOW_ID_REUSE_POLICY_REJECT_DUPLICATE, false, false},
	} {
		for argument, allowed := range map[int]bool{-1: c.afterFailure, 2: c.afterDone} {
			options := e.options()
			options.WorkflowExecutionErrorWhenAlreadyStarted = true
			options.WorkflowIDReusePolicy = c.policy
			first := e.startWith(options, square, argument)
			_ = first.Get(e.Context, nil)
			_, err := e.ExecuteWorkflow(e.Context, options, square, 1)
			if allowed {
				require.NoError(t, err, "%v, argument %d", c.policy, argument)
				continue
			}
			var exists *serviceerror.WorkflowExecutionAlreadyStarted
			require.True(t, errors.As(err, &exists), "%v, argument %d: %v", c.policy, argument, err)
			require.Equal(t, first.GetRunID(), exists.RunId)
		}
	}
}

func TestConflictPolicies(t *testing.T) {
	e := setup(t)
	e.worker([]any{basket})
	options := e.options()
	options.WorkflowExecutionErrorWhenAlreadyStarted = true
	first := e.startWith(options, basket)

	_, err := e.ExecuteWorkflow(e.Context, options, basket)
	var exists *serviceerror.WorkflowExecutionAlreadyStarted
	require.True(t, errors.As(err, &exists), "%v", err)

	options.WorkflowIDConflictPolicy = enumspb.WORKFLOW_ID_CONFLICT_POLICY_USE_EXISTING
	require.Equal(t, first.GetRunID(), e.startWith(options, basket).GetRunID())

	options.WorkflowIDConflictPolicy = enumspb.WORKFLOW_ID_CONFLICT_POLICY_TERMINATE_EXISTING
	second := e.startWith(options, basket)
	require.NotEqual(t, first.GetRunID(), second.GetRunID())
	description, err := e.DescribeWorkflowExecution(e.Context, options.ID, first.GetRunID())
	require.NoError(t, err)
	require.Equal(t, enumspb.WORKFLOW_EXECUTION_STATUS_TERMINATED, description.WorkflowExecutionInfo.Status)
	require.NoError(t, e.TerminateWorkflow(e.Context, options.ID, "", "test ends"))
}

func TestRacingStartsMakeOneRun(t *testing.T) {
	e := setup(t)
	e.worker([]any{basket})
	options := e.options()
	runs := make([]string, 50)
	var group sync.WaitGroup
	for n := range runs {
		group.Go(func() {
			if run, err := e.ExecuteWorkflow(e.Context, options, basket); err == nil {
				runs[n] = run.GetRunID()
			}
		})
	}
	group.Wait()
	for _, run := range runs {
		require.Equal(t, runs[0], run)
	}
	require.NotEmpty(t, runs[0])
	require.NoError(t, e.TerminateWorkflow(e.Context, options.ID, "", "test ends"))
}

func TestWorkflowRetryAndTimeout(t *testing.T) {
	e := setup(t)
	thirdTime := func(ctx workflow.Context) (int32, error) {
		if attempt := workflow.GetInfo(ctx).Attempt; attempt < 3 {
			return 0, errors.New("not yet")
		}
		return workflow.GetInfo(ctx).Attempt, nil
	}
	e.worker([]any{thirdTime, basket})

	options := e.options()
	options.RetryPolicy = &temporal.RetryPolicy{InitialInterval: 100 * time.Millisecond}
	require.EqualValues(t, 3, result[int](e, e.startWith(options, thirdTime)))

	options = e.options()
	options.WorkflowRunTimeout = time.Second
	err := e.startWith(options, basket).Get(e.Context, nil)
	var timeout *temporal.TimeoutError
	require.True(t, errors.As(err, &timeout), "%v", err)
}

func TestEagerStart(t *testing.T) {
	e := setup(t)
	e.worker([]any{square})
	options := e.options()
	options.EnableEagerStart = true
	run := e.startWith(options, square, 4)
	require.Equal(t, 16, result[int](e, run))
	started := e.history(run)[0].GetWorkflowExecutionStartedEventAttributes()
	require.True(t, started.EagerExecutionAccepted)
}

func TestAnotherWorkerTakesOver(t *testing.T) {
	e := setup(t)
	first := e.worker([]any{basket})
	run := e.start(basket)
	require.NoError(t, e.SignalWorkflow(e.Context, run.GetID(), "", "add", "before"))
	require.Equal(t, []string{"before"}, query[[]string](e, run.GetID(), "items"))
	first.Stop()

	e.worker([]any{basket})
	require.NoError(t, e.SignalWorkflow(e.Context, run.GetID(), "", "add", "after"))
	require.Equal(t, []string{"before", "after"}, query[[]string](e, run.GetID(), "items"))
	require.NoError(t, e.SignalWorkflow(e.Context, run.GetID(), "", "done", nil))
	require.Equal(t, []string{"before", "after"}, result[[]string](e, run))
}
