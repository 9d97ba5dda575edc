package server

import (
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"claviger.dev"
)

// metrics are the numbers of one server. Labels are methods and codes, never
// the name of a key, a principal or an address.
type metrics struct {
	registry    *prometheus.Registry
	requests    *prometheus.CounterVec
	seconds     *prometheus.HistogramVec
	connections *prometheus.GaugeVec
	evicted     *prometheus.CounterVec
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
	}
	all := append([]prometheus.Collector{m.requests, m.seconds, m.connections, m.evicted,
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), collectors.NewGoCollector()}, extra...)
	for _, c := range all {
		if err := m.registry.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
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
