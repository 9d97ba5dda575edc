package proxy

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
)

// metrics are the numbers of one proxy. No label is a name of a cookie or a key.
type metrics struct {
	registry *prometheus.Registry
	requests *prometheus.CounterVec
	tokens   *prometheus.CounterVec
	renewed  prometheus.Counter
	seconds  *prometheus.HistogramVec
	open     prometheus.Gauge
}

func newMetrics() (*metrics, error) {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "claviger_proxy_requests_total",
			Help: "Requests by what became of them: passed, refused, custody (away or refusing), application (at fault), gone."}, []string{"outcome"}),
		tokens: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "claviger_proxy_tokens_total",
			Help: "Tokens on their way in (checked by custody) and out (made by it)."}, []string{"way", "outcome"}),
		renewed: prometheus.NewCounter(prometheus.CounterOpts{Name: "claviger_proxy_renewed_total",
			Help: "Cookies by an older version that were set again."}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "claviger_proxy_custody_seconds",
			Help: "Time of a call to custody.", Buckets: prometheus.ExponentialBuckets(50e-6, 2, 18)}, []string{"call"}),
		open: prometheus.NewGauge(prometheus.GaugeOpts{Name: "claviger_proxy_open", Help: "Requests that are being answered."}),
	}
	for _, c := range []prometheus.Collector{m.requests, m.tokens, m.renewed, m.seconds, m.open,
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), collectors.NewGoCollector()} {
		if err := m.registry.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

func (m *metrics) token(way string, ok bool) {
	outcome := "ok"
	if !ok {
		outcome = "invalid"
	}
	m.tokens.WithLabelValues(way, outcome).Inc()
}

func (m *metrics) asked(call string, began time.Time) {
	m.seconds.WithLabelValues(call).Observe(time.Since(began).Seconds())
}
