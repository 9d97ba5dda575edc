package server

import (
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"claviger.dev"
	"claviger.dev/internal/keeper"
)

// metrics are the numbers of one server. Labels are methods and codes, and of
// tokens the id and version of their key: never the name of a key, a principal
// or an address.
type metrics struct {
	registry    *prometheus.Registry
	requests    *prometheus.CounterVec
	seconds     *prometheus.HistogramVec
	connections *prometheus.GaugeVec
	evicted     *prometheus.CounterVec
	statuses    *prometheus.CounterVec
	fronts      *prometheus.CounterVec
}

func newMetrics(extra []prometheus.Collector) (*metrics, error) {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "claviger_requests_total", Help: "Answered calls by method and code."}, []string{"method", "code"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "claviger_request_seconds", Help: "Time from a call's headers to the end of its answer.",
			Buckets: prometheus.ExponentialBuckets(50e-6, 2, 18)}, []string{"method"}),
		connections: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "claviger_connections", Help: "Open connections by listener."}, []string{"listener"}),
		evicted: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "claviger_connections_evicted_total", Help: "Idle connections closed because there were too many."}, []string{"listener"}),
		statuses: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "claviger_token_statuses_total", Help: "Tokens that resource servers asked about, by whether their session lives."}, []string{"live"}),
		fronts: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "claviger_forward_auth_total", Help: "Answers to proxies by application and HTTP status."}, []string{"application", "status"}),
	}
	all := append([]prometheus.Collector{m.requests, m.seconds, m.connections, m.evicted, m.statuses, m.fronts,
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), collectors.NewGoCollector()}, extra...)
	for _, c := range all {
		if err := m.registry.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// tokens are the counts of tokens by version, in which an old one is seen to
// drain. The id of a key says nothing to who may not read the key.
type tokens struct{ count func() []keeper.TokenCount }

// maxTokenSeries bounds the series of tokens; further versions are left out.
const maxTokenSeries = 10_000

func tokensDesc() *prometheus.Desc {
	return prometheus.NewDesc("claviger_version_tokens_total", "Tokens that this server made (protect) or checked (unprotect) since it started, by key id and version.",
		[]string{"key", "version", "operation"}, nil)
}

// Describe implements [prometheus.Collector].
func (t tokens) Describe(ch chan<- *prometheus.Desc) { ch <- tokensDesc() }

// Collect implements [prometheus.Collector].
func (t tokens) Collect(ch chan<- prometheus.Metric) {
	counts := t.count()
	for _, c := range counts[:min(len(counts), maxTokenSeries)] {
		ch <- prometheus.MustNewConstMetric(tokensDesc(), prometheus.CounterValue, float64(c.Count),
			string(c.Key), strconv.FormatUint(uint64(c.Version), 10), string(c.Operation))
	}
}

// sessionEvents are the counts of what the rules against abuse saw, by event.
type sessionEvents struct{ count func() map[string]uint64 }

func sessionEventsDesc() *prometheus.Desc {
	return prometheus.NewDesc("claviger_session_events_total", "Events of sessions that this server raised since it started.", []string{"event"}, nil)
}

// Describe implements [prometheus.Collector].
func (e sessionEvents) Describe(ch chan<- *prometheus.Desc) { ch <- sessionEventsDesc() }

// Collect implements [prometheus.Collector].
func (e sessionEvents) Collect(ch chan<- prometheus.Metric) {
	counts := e.count()
	for _, event := range claviger.SessionEvents { // those that were not raised too: a rate begins at zero
		ch <- prometheus.MustNewConstMetric(sessionEventsDesc(), prometheus.CounterValue, float64(counts[string(event)]), string(event))
	}
}

// following is how the server follows a store that others share. Where none
// does there is nothing of it.
type following struct {
	status func() (keeper.Following, bool)
}

func followingDescs() (confirmed, change, refused *prometheus.Desc) {
	return prometheus.NewDesc("claviger_store_confirmed_seconds", "Time since the question to the shared store that was confirmed last; from 1.9 on everything is refused.", nil, nil),
		prometheus.NewDesc("claviger_store_change", "Number of the last change of the shared store that this server has applied.", nil, nil),
		prometheus.NewDesc("claviger_store_stale_total", "Checks that were refused because the shared store confirmed nothing.", nil, nil)
}

// Describe implements [prometheus.Collector].
func (f following) Describe(ch chan<- *prometheus.Desc) {
	confirmed, change, refused := followingDescs()
	ch <- confirmed
	ch <- change
	ch <- refused
}

// Collect implements [prometheus.Collector].
func (f following) Collect(ch chan<- prometheus.Metric) {
	s, ok := f.status()
	if !ok {
		return
	}
	confirmed, change, refused := followingDescs()
	ch <- prometheus.MustNewConstMetric(confirmed, prometheus.GaugeValue, s.Confirmed.Seconds())
	ch <- prometheus.MustNewConstMetric(change, prometheus.GaugeValue, float64(s.Number))
	ch <- prometheus.MustNewConstMetric(refused, prometheus.CounterValue, float64(s.Refused))
}

func (m *metrics) observe(method string, code claviger.Code, took time.Duration) {
	if code == "" {
		code = "ok"
	}
	m.requests.WithLabelValues(method, string(code)).Inc()
	m.seconds.WithLabelValues(method).Observe(took.Seconds())
}

func (m *metrics) handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{MaxRequestsInFlight: 4, Timeout: 10 * time.Second}))
	return mux
}
