package postgres

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"claviger.dev"
	"claviger.dev/internal/store"
)

// maxNews is how many changes one look at the news lists.
const maxNews = 1000

// feed is a connection of its own: one of a pool could be one of many that died
// together, or be waited for behind other work.
type feed struct{ conn *pgx.Conn }

func openFeed(ctx context.Context, config *pgx.ConnConfig) (store.Feed, error) {
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		return nil, err
	}
	return feed{conn}, nil
}

const newsQuery = `WITH listed AS (
	INSERT INTO replicas (node, number, tag, beat) VALUES ($1, $2, $3, 1)
	ON CONFLICT (node) DO UPDATE SET number = excluded.number, tag = excluded.tag, beat = replicas.beat + 1 RETURNING beat)
SELECT l.beat, s.database::text, s.value, s.tag::text, c.number, c.tag::text, c.touched
FROM listed l CROSS JOIN change_sequence s LEFT JOIN changes c ON c.number >= $4
ORDER BY c.number LIMIT $5`

// noTag stands for the tag of the zero Position.
const noTag = "00000000-0000-0000-0000-000000000000"

// News implements store.Feed. The statement sees the sequence and the changes
// as of one moment.
func (f feed) News(ctx context.Context, node string, from store.Position) (store.News, error) {
	first, tag := int64(from.Number), from.Tag
	zero := from == store.Position{}
	if zero {
		first, tag = math.MaxInt64, noTag
	}
	rows, err := f.conn.Query(ctx, newsQuery, node, int64(from.Number), tag, first, maxNews+1)
	if err != nil {
		return store.News{}, lost(err)
	}
	news := store.News{Holds: zero, All: zero}
	next := from.Number
	var number *int64
	var changed, touched *string
	_, err = pgx.ForEachRow(rows, []any{&news.Beat, &news.Head.Database, &news.Head.Number, &news.Head.Tag, &number, &changed, &touched}, func() error {
		switch {
		case number == nil:
			return nil
		case uint64(*number) == from.Number:
			news.Holds = news.Head.Database == from.Database && *changed == from.Tag
		case touched == nil:
			news.All = true
		default:
			for id := range strings.FieldsSeq(*touched) {
				news.Touched = append(news.Touched, claviger.ID(id))
			}
		}
		next = uint64(*number)
		return nil
	})
	if err != nil {
		return store.News{}, lost(err)
	}
	news.All = news.All || next != news.Head.Number // more than maxNews
	return news, nil
}

// Close implements store.Feed.
func (f feed) Close(ctx context.Context) error { return f.conn.Close(ctx) }

// lost gives an error that came of the connection a code.
func lost(err error) error {
	if e := fault(err); e != nil {
		return e.Wrap(err)
	}
	return errLost.Wrap(err)
}

// listen calls wake once at the start, since something may have changed before
// it listened, and at every notification.
func listen(ctx context.Context, config *pgx.ConnConfig, wake func()) error {
	config = config.Copy()
	config.OnNotification = func(*pgconn.PgConn, *pgconn.Notification) { wake() }
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	if _, err := conn.Exec(ctx, `LISTEN claviger_changes`); err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	wake()
	for {
		if err := conn.PgConn().WaitForNotification(ctx); err != nil {
			return errors.Join(err, ctx.Err())
		}
	}
}
