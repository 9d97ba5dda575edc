// Package edge holds the tests of what stands in front of and behind
// applications, with parties that nobody here wrote: nginx, Chromium, Node.
package edge
