package store_test

import (
	"testing"
	"testing/fstest"

	"claviger.dev/internal/store"
)

func TestMigrationsAreNumbered(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		files []string
		want  int // -1 when refused
	}{
		"in order":  {[]string{"m/0001_a.sql", "m/0002_b.sql"}, 2},
		"none":      {[]string{"m/x/y"}, -1},
		"gap":       {[]string{"m/0001_a.sql", "m/0003_b.sql"}, -1},
		"twice":     {[]string{"m/0001_a.sql", "m/0001_b.sql"}, -1},
		"from two":  {[]string{"m/0002_a.sql"}, -1},
		"no number": {[]string{"m/a.sql"}, -1},
	} {
		fsys := fstest.MapFS{}
		for _, f := range test.files {
			fsys[f] = &fstest.MapFile{Data: []byte(f)}
		}
		all, err := store.Migrations(fsys, "m")
		if got := len(all); err == nil && got != test.want || err != nil && test.want != -1 {
			t.Errorf("%s: %d migrations, %v; want %d", name, got, err, test.want)
		}
	}
}
